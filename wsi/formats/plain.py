"""A plain image (PNG, JPEG, BMP, WebP) as a slide of one level, held in memory.

No scale in such a file is believed: cameras and editors write a screen's resolution there. An orientation in EXIF is
not applied, so that coordinates are those of the stored pixels; `SlideInfo.why` says when there is one. Transparency is
laid over white.
"""

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..channels import Blend, Channels, FileChannels, refusal
from ..errors import SlideError, SpecError
from ..slide import SlideInfo
from .file_check import COPY_AGAIN
from .match import Match
from .scale import Scale
from .tiled import TiledSlide
from .tilewise import Grid

_MAX_PX = 100_000_000  # 300 MB in memory
_TILE_PX = 512
_ORIENTATION = 0x0112

# Suffix, first bytes, name in Pillow. The suffix counts, too: a slide's name with an image in it is a download gone
# wrong, and a MIRAX slide's own file is a JPEG image.
_KINDS = (
    ((".png",), b"\x89PNG\r\n\x1a\n", "PNG"),
    ((".jpg", ".jpeg"), b"\xff\xd8\xff", "JPEG"),
    ((".bmp",), b"BM", "BMP"),
    ((".webp",), b"RIFF", "WEBP"),
)
_PNG_CHANNELS = {0: ("grey",), 2: ("red", "green", "blue"), 4: ("grey", "alpha"), 6: ("red", "green", "blue", "alpha")}


class PlainLevel:
    """The image in squares; see tiled.TileLevel."""

    factors: tuple[int, ...] = ()

    def __init__(self, pixels: NDArray[np.uint8]):
        self.grid = Grid.of(pixels.shape[1], pixels.shape[0], _TILE_PX, _TILE_PX)
        self._pixels = pixels

    def decode(self, tile: int, into: NDArray[np.uint8], factor: int = 1) -> None:
        top, left = (_TILE_PX * place for place in divmod(tile, self.grid.columns))
        part = self._pixels[top : top + _TILE_PX, left : left + _TILE_PX]
        into[: part.shape[0], : part.shape[1]] = part

    def prefetch(self, tiles: NDArray[np.int64]) -> None:
        """Nothing to do: it is in memory."""

    def jpeg(self, tile: int) -> bytes | None:
        return None


class PlainSlide(TiledSlide):
    """An open plain image. Reads are thread-safe: the pixels do not change."""

    def __init__(self, path: Path, info: SlideInfo, pixels: NDArray[np.uint8]):
        super().__init__(path, info, [PlainLevel(pixels)])

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True)
class PlainReader:
    """Opens plain images; `channels` show one of 16 bits per sample."""

    channels: Channels | None

    def matches(self, path: Path) -> Match:
        kind = _kind(path)
        if kind is None:
            return Match(False, "no plain image with the suffix of one")
        if self.channels is not None and _png_depth(path) != 16:
            raise SpecError("channels", f"{path.name} has none to choose (plain {kind} image)", "leave the setting out")
        return Match(True, f"plain {kind} image")

    def __call__(self, path: Path, why: str, override: Scale | None) -> PlainSlide:
        kind = _kind(path) or "PNG"
        turned = _check(path, kind)
        blend = None
        if _png_depth(path) == 16:
            pixels, blend = _read_deep_png(path, self.channels)
        else:
            pixels = _read_jpeg(path) if kind == "JPEG" else _read(path, kind)
        scale = override or Scale(None, None, "a plain image states no pixel size that can be believed")
        info = SlideInfo(
            reader="plain",
            why=f"{why}; its EXIF orientation is not applied" if turned else why,
            vendor="plain-image",
            mpp=scale.mpp,
            mpp_source=scale.source,
            mpp_problem=scale.problem,
            codec=kind.lower(),
            channels=None if blend is None else str(blend.channels),
        )
        return PlainSlide(path, info, pixels)


def _kind(path: Path) -> str | None:
    """Pillow's name of an image whose content and suffix agree."""
    with path.open("rb") as file:
        head = file.read(12)
    for suffixes, magic, kind in _KINDS:
        if path.suffix.lower() in suffixes and head.startswith(magic) and (kind != "WEBP" or head[8:] == b"WEBP"):
            return kind
    return None


def _png_depth(path: Path) -> int | None:
    """Bits per sample of a PNG file, None for others."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[24] if head.startswith(_KINDS[0][1]) and len(head) == 26 else None


def _check(path: Path, kind: str) -> bool:
    """Whether EXIF states an orientation. Raises SlideError for an image that is too large or damaged, from its header,
    and for PNG from the checksums of all its parts."""
    from PIL import Image

    if kind == "PNG":
        _check_px(path, *struct.unpack(">II", path.read_bytes()[16:24]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked below
            image = Image.open(path, formats=(kind,))
        with image:
            _check_px(path, *image.size)
            if getattr(image, "n_frames", 1) > 1:
                raise SlideError(path, "this is an animation", "give an image of one frame")
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            image.verify()
    except Image.DecompressionBombError:
        raise _too_large(path, "far too many") from None
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise SlideError(path, f"this {kind} image is damaged ({error})", COPY_AGAIN) from None
    return exif.get(_ORIENTATION, 1) != 1


def _check_px(path: Path, width: int, height: int) -> None:
    if width * height > _MAX_PX:
        raise _too_large(path, f"{width:,} x {height:,}")


def _too_large(path: Path, count: str) -> SlideError:
    problem = f"this plain image has {count} pixels, more than the {_MAX_PX:,} that are held in memory"
    return SlideError(path, problem, "convert it to a tiled pyramidal TIFF")


def _read(path: Path, kind: str) -> NDArray[np.uint8]:
    """RGB uint8 (rows, cols, 3) of a PNG, BMP or WebP image of 8 bits."""
    from PIL import Image

    try:
        with Image.open(path, formats=(kind,)) as image:
            image.load()
            if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
                raise SlideError(path, f"this {kind} image is in the colour mode {image.mode}", "save it as RGB")
            if image.has_transparency_data:
                return _over_white(np.asarray(image.convert("RGBA")))
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise SlideError(path, f"this {kind} image is damaged ({error})", COPY_AGAIN) from None


def _over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    out = np.empty((*rgba.shape[:2], 3), np.uint8)
    for row, pixels in enumerate(rgba):  # row by row: the products need twice the bytes
        alpha = pixels[:, 3:].astype(np.uint16)
        out[row] = (pixels[:, :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return out


def _read_jpeg(path: Path) -> NDArray[np.uint8]:
    import simplejpeg

    data = path.read_bytes()
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        if colour not in ("Gray", "RGB", "YCbCr"):
            raise SlideError(path, f"this JPEG image is in the colour space {colour}", "save it as RGB")
        _check_px(path, width, height)
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        raise SlideError(path, f"this JPEG image is damaged ({error})", COPY_AGAIN) from None


def _read_deep_png(path: Path, channels: Channels | None) -> tuple[NDArray[np.uint8], Blend]:
    """RGB uint8 (rows, cols, 3) of chosen channels of a PNG image of 16 bits per sample."""
    import imagecodecs

    data = path.read_bytes()
    found = FileChannels(_PNG_CHANNELS.get(data[25], ("grey",)), np.dtype(np.uint16))
    if channels is None:
        raise refusal(path, found)
    blend = Blend(channels, found)
    try:
        values = imagecodecs.png_decode(data)
    except (ValueError, RuntimeError) as error:
        raise SlideError(path, f"this PNG image is damaged ({error})", COPY_AGAIN) from None
    values = values.reshape(*values.shape[:2], -1)
    pixels = np.empty((*values.shape[:2], 3), np.uint8)
    blend.blend([values[..., channel] for channel in blend.used], pixels)
    return pixels, blend
