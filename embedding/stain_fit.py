"""Stains of a picture: what a slide's tissue pixels, or those of a reference, say about its dyes.

Optical density (natural log) of a grey level I is -log((I + 1) / i0); dyes add up in it (Beer-Lambert). Two dyes span a
plane in that space of three channels: a `Basis` is their directions and how much of each there is. Reinhard's method
has no dyes: a `Moments` is the mean and spread of CIE Lab.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I0 = {"macenko": 240.0, "vahadane": 256.0}  # grey level + 1 of clear glass; Macenko's own, and white
PIXELS = 100_000  # that a fit looks at, at most
FEWEST = 500  # stained pixels that a fit needs
CLEAR, GLASS = (
    220,
    240,
)  # darkest channel of a pixel: under the first is tissue, over the second glass, a bit of both between
BLACK = 20  # brightest channel of a pixel that has no hue: ink, or a fold
ALPHA, BETA = 1.0, 0.15  # Macenko: per cent of outliers at each end; optical density under which a pixel has no hue
SPARSITY = 0.1  # Vahadane's lambda
LEAST_ANGLE = 10.0  # degrees between two dyes; less is the noise of one
LEAST_AMOUNT = 0.05  # optical density of a dye's 99th percentile
# What of each algorithm determines pixels, for the contract.
PARAMETERS: dict[str, dict[str, object]] = {
    "macenko": {"i0": I0["macenko"], "alpha": ALPHA, "beta": BETA, "amounts": "least squares"},
    "reinhard": {"space": "CIE Lab, D65"},
    "vahadane": {"i0": I0["vahadane"], "sparsity": SPARSITY, "amounts": "non-negative least squares"},
}


class UnfitError(Exception):
    """These pixels have no stains to be found; the text says why."""


@dataclass(frozen=True, slots=True)
class Basis:
    """Two dyes, haematoxylin first: directions (2, 3) of length 1 in optical density of R, G, B, and the 99th
    percentile of each dye's amount."""

    dyes: tuple[tuple[float, float, float], tuple[float, float, float]]
    most: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of CIE L (0 to 100), a and b."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def measure(method: str, tissue: NDArray[np.uint8]) -> Basis | Moments:
    """The stains of RGB pixels (m, 3), by macenko, vahadane or reinhard. Glass, ink and what is not finite are left
    out; of many a fixed random choice is looked at. Raises UnfitError."""
    pixels = stained(tissue, PIXELS)
    if method == "reinhard":
        return _moments(pixels)
    density = -np.log((pixels + 1.0) / I0[method])
    dyes = _macenko(density) if method == "macenko" else _vahadane(density)
    dyes = dyes[np.argsort(-dyes[:, 0])]  # haematoxylin is the one that takes more of the red
    angle = np.degrees(np.arccos(np.clip(dyes[0] @ dyes[1], -1, 1)))
    if not angle >= LEAST_ANGLE:
        raise UnfitError(f"only one stain: the two found are {angle:.1f} degrees apart")
    amounts = np.linalg.lstsq(dyes.T, density.T, rcond=None)[0] if method == "macenko" else nonnegative(dyes, density)
    most = np.percentile(amounts, 99, axis=1)
    if not most.min() >= LEAST_AMOUNT:
        raise UnfitError("only one stain: there is next to nothing of the second")
    return Basis((_three(dyes[0]), _three(dyes[1])), (float(most[0]), float(most[1])))


def stained(tissue: NDArray[np.uint8], most: int) -> NDArray[np.float64]:
    """Up to `most` RGB pixels (m, 3) of tissue that are neither glass nor black, always the same ones."""
    pixels = np.asarray(tissue)
    if pixels.ndim != 2 or pixels.shape[1] != 3:
        raise UnfitError(f"no RGB pixels but an array of {pixels.shape}")
    kept = np.isfinite(pixels).all(axis=1) & (pixels.min(axis=1) < CLEAR) & (pixels.max(axis=1) > BLACK)
    rows = np.flatnonzero(kept)
    if len(rows) < FEWEST:
        raise UnfitError(f"too little tissue: {len(rows):,} of {len(pixels):,} pixels are stained, {FEWEST} are needed")
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    return pixels[rows].astype(np.float64)


def _macenko(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """Dyes (2, 3): the extreme directions in the plane of the two largest eigenvectors (Macenko et al. 2009)."""
    coloured = density[(density >= BETA).all(axis=1)]
    if len(coloured) < FEWEST:
        raise UnfitError(f"too little tissue: only {len(coloured):,} pixels are dark enough to have a hue")
    values, vectors = np.linalg.eigh(np.cov(coloured.T))
    if not values[1] > 1e-6:  # not above: all pixels alike, or on a line
        raise UnfitError("only one stain: the colours of the tissue vary along a line")
    plane = vectors[:, [2, 1]]  # (3, 2)
    plane[:, 0] *= np.sign(plane[:, 0].sum())  # dyes absorb, so that the angles lie around 0
    along, across = (coloured @ plane).T
    angles = np.percentile(np.arctan2(across, along), [ALPHA, 100 - ALPHA])
    return np.stack([plane @ [np.cos(angle), np.sin(angle)] for angle in angles])


def _vahadane(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """Dyes (2, 3) by sparse non-negative matrix factorisation (Vahadane et al. 2016, their lambda 0.1).

    Amounts and dyes are solved for in turn. With two dyes both steps are exact and closed, so this reaches the dyes of
    scikit-learn's DictionaryLearning, which solves a LASSO for each pixel, in a thousandth of its time.
    """
    density = density.clip(0)
    dyes = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # Ruifrok's H and E, where the search starts
    dyes /= np.linalg.norm(dyes, axis=1, keepdims=True)
    for _ in range(500):
        amounts, before = nonnegative(dyes, density, SPARSITY), dyes.copy()
        both, mixed = amounts @ amounts.T, amounts @ density
        if not both.diagonal().min() > 1e-9 * len(density):
            raise UnfitError("only one stain: one dye explains all of it")
        for dye in (0, 1, 0, 1, 0, 1):
            step = (dyes[dye] + (mixed[dye] - both[dye] @ dyes) / both[dye, dye]).clip(0)
            dyes[dye] = step / max(float(np.linalg.norm(step)), 1e-9)
        if np.abs(dyes - before).max() < 1e-5:
            break
    return dyes


def nonnegative(dyes: NDArray[np.float64], density: NDArray[np.float64], sparsity: float = 0.0) -> NDArray[np.float64]:
    """Amounts (2, m) ≥ 0 of two dyes (2, 3) of length 1 that make density (m, 3) best: the least of half the squared
    error and `sparsity` times the amounts' sum."""
    along = dyes @ density.T - sparsity
    overlap = float(dyes[0] @ dyes[1])
    free = (along - overlap * along[::-1]) / max(1 - overlap**2, 1e-9)
    return np.where(free[::-1] < 0, along, free).clip(0)  # where one is not there, the other is as if alone


def _moments(pixels: NDArray[np.float64]) -> Moments:
    from skimage.color import rgb2lab

    lab = rgb2lab(pixels / 255)
    mean, std = lab.mean(axis=0), lab.std(axis=0, ddof=1)
    if not std.min() > 0.1:
        raise UnfitError("the colours of the tissue do not vary")
    return Moments(_three(mean), _three(std))


def _three(values: NDArray[np.float64]) -> tuple[float, float, float]:
    first, second, third = map(float, values)
    return first, second, third
