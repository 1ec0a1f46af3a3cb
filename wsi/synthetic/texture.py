"""Noise: smooth random fields for layouts, and tileable textures for fibres, cytoplasm and sensor noise."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

TEXTURE_PX = 1024  # side of the tileable textures
BLOCK_PX = 256  # side of the blocks that a slide is painted in

Field = NDArray[np.float32]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], wavelength: float) -> Field:
    """Random field with mean 0 and deviation of about 0.6; features are about `wavelength` entries apart."""
    wavelength = max(1.0, wavelength)
    coarse = rng.standard_normal([int(np.ceil(n / wavelength)) + 4 for n in shape]).astype(np.float32)
    size = (int(coarse.shape[1] * wavelength), int(coarse.shape[0] * wavelength))
    full = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    top, left = (int(wavelength * 1.5 + rng.random() * wavelength * 0.5) for _ in range(2))
    return np.ascontiguousarray(full[top : top + shape[0], left : left + shape[1]])


def _blur_wrapped(image: Field, sigma_x: float, sigma_y: float) -> Field:
    """Gaussian blur of a tileable image, scaled to mean 0 and deviation 1."""
    pad = int(3.5 * max(sigma_x, sigma_y)) + 1
    wide = cv2.GaussianBlur(np.pad(image, pad, mode="wrap"), (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)
    out = wide[pad:-pad, pad:-pad]
    return (out - out.mean()) / out.std()


def _white_noise(seed: int) -> Field:
    return np.random.default_rng(seed).standard_normal((TEXTURE_PX, TEXTURE_PX), dtype=np.float32)


@lru_cache(maxsize=1)
def fibre_texture() -> Field:
    """Tileable fibres along x, mean 0 and deviation 1 (one pixel is 0.5 µm), repeated twice each way."""
    fine = _blur_wrapped(_white_noise(11), 9.0, 0.9)
    middle = _blur_wrapped(_white_noise(14), 22.0, 2.2)
    bundles = _blur_wrapped(_white_noise(12), 48.0, 6.0)
    patches = _blur_wrapped(_white_noise(13), 26.0, 20.0)
    mixed = 0.45 * fine + 0.55 * middle + 0.55 * bundles + 0.4 * patches
    return np.ascontiguousarray(np.tile(mixed / mixed.std(), (2, 2)), dtype=np.float32)


def fibres(along: Field, across: Field) -> Field:
    """Fibre texture at the given texture coordinates."""
    # Coordinates are brought near the texture first: cv2 wraps far ones an order of magnitude slower.
    along, across = (part - np.float32(np.floor(part.min() / TEXTURE_PX) * TEXTURE_PX) for part in (along, across))
    fibre = cv2.remap(fibre_texture(), along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(fibre, np.float32)


@lru_cache(maxsize=1)
def grain_texture() -> Field:
    """Tileable granular noise for cytoplasm, repeated so that any block can be cut out of it; deviation 1."""
    grain = 0.75 * _blur_wrapped(_white_noise(21), 1.1, 1.1) + 0.66 * _blur_wrapped(_white_noise(22), 4.0, 4.0)
    return np.ascontiguousarray(np.pad(grain, ((0, BLOCK_PX), (0, BLOCK_PX)), mode="wrap"))


@lru_cache(maxsize=1)
def sensor_noise() -> Field:
    """White noise with a little correlation between colours, (TEXTURE_PX, TEXTURE_PX, 3), deviation about 1."""
    rng = np.random.default_rng(31)
    grey = rng.standard_normal((TEXTURE_PX, TEXTURE_PX, 1), dtype=np.float32)
    return 0.8 * grey + 0.6 * rng.standard_normal((TEXTURE_PX, TEXTURE_PX, 3), dtype=np.float32)


def enlarge(field: Field, row: int, col: int, cells: int, cell_px: int) -> Field:
    """Block of a field (padded by 2 cells on each side) at full resolution: (cells * cell_px,) * 2, without seams."""
    piece = field[row : row + cells + 4, col : col + cells + 4]
    side = cells * cell_px
    full = cv2.resize(piece, (side + 4 * cell_px,) * 2, interpolation=cv2.INTER_CUBIC)
    return np.asarray(full[2 * cell_px : 2 * cell_px + side, 2 * cell_px : 2 * cell_px + side], np.float32)
