"""The heatmap over the slide's thumbnail, as a picture that explains itself: legend, scale bar, names."""

import io
import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi.errors import SpecError
from wsi.publish import appear_file

from .colour import NO_DATA, colour_table, colours_of
from .heatmap import Heatmap

_PAPER, _INK, _QUIET, _RULE = (255, 255, 255), (32, 36, 44), (96, 104, 116), (205, 210, 218)
_PNG_LEVEL = 2  # three to four times as fast as zlib's usual 6, for a file larger by about a tenth
_UNITS = ((1000.0, "mm"), (1.0, "um"))  # µm each; the built-in font has no µ


@dataclass(frozen=True, slots=True)
class OverlayStyle:
    """How an overlay is drawn.

    alpha       how much of a tile's colour covers the tissue, in [0, 1]
    min_px      a smaller thumbnail is enlarged until its longer side has so many pixels, so that text stays readable
    max_px      a larger one is reduced to this
    display     (low, high) that the colours are spread over; None for the score's whole range. What lies beyond has the
                colour of the nearer end, and the legend says so
    note        whose range `display` is, for the legend
    """

    alpha: float = 0.6
    min_px: int = 1000
    max_px: int = 4000
    display: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class TileRaster:
    """Tiles laid on the picture's pixels, (rows, cols): mean score, where there is one, and where data is missing."""

    mean: NDArray[np.float64]
    scored: NDArray[np.bool_]
    failed: NDArray[np.bool_]


def draw_overlay(
    thumbnail: NDArray[np.uint8],
    scale: float,
    heatmap: Heatmap,
    path: Path,
    mpp: float | None = None,
    style: OverlayStyle = OverlayStyle(),
) -> None:
    """Write the overlay as PNG.

    thumbnail  uint8 (rows, cols, 3), the whole slide
    scale      level-0 pixels per thumbnail pixel, > 0
    mpp        µm per level-0 pixel for the scale bar; None leaves the bar out
    Under the tiles the tissue is shown in grey, so that hue means score and nothing else; where there is no tile the
    thumbnail stays as it is. Overlapping tiles are averaged. Memory follows the thumbnail, never level 0.
    """
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8 or 0 in thumbnail.shape:
        raise SpecError(heatmap.slide_id, f"thumbnail is {thumbnail.dtype} {thumbnail.shape}", "give uint8 RGB")
    if not (math.isfinite(scale) and scale > 0):
        raise SpecError(heatmap.slide_id, f"scale {scale}", "give the level-0 pixels per thumbnail pixel")
    base = _fit(thumbnail, style)
    rows, cols = base.shape[:2]
    scale_xy = (scale * thumbnail.shape[1] / cols, scale * thumbnail.shape[0] / rows)
    raster = lay_tiles(heatmap, (rows, cols), scale_xy)
    picture = Image.fromarray(paint_tiles(base, raster, style.display or heatmap.limits, style.alpha))
    page = _page(picture, heatmap, None if mpp is None else mpp * scale_xy[0], style)
    with appear_file(path) as draft:
        page.save(draft, format="PNG", compress_level=_PNG_LEVEL)


def lay_tiles(heatmap: Heatmap, shape: tuple[int, int], scale_xy: tuple[float, float]) -> TileRaster:
    """Where the tiles lie on a picture of `shape` (rows, cols) with `scale_xy` level-0 pixels per pixel.

    Edges are rounded to the nearest pixel, so neighbours abut and a tile covers at least one pixel.
    """
    edges = _edges(np.concatenate([heatmap.xy, heatmap.failed_xy]), heatmap.span_px, shape, scale_xy)
    total, count = _sum_boxes(heatmap.xy, heatmap.scores.astype(np.float64), heatmap.span_px, edges, scale_xy)
    scored = count > 0.5
    mean = np.divide(total, count, out=np.zeros(count.shape), where=scored)
    _, lost = _sum_boxes(heatmap.failed_xy, np.zeros(len(heatmap.failed_xy)), heatmap.span_px, edges, scale_xy)
    across, down = (np.diff(along) for along in edges)

    def spread(part: NDArray) -> NDArray:
        return part.repeat(down, axis=0).repeat(across, axis=1)

    return TileRaster(spread(mean), spread(scored), spread((lost > 0.5) & ~scored))


def paint_tiles(
    base: NDArray[np.uint8], raster: TileRaster, limits: tuple[float, float], alpha: float
) -> NDArray[np.uint8]:
    """A copy of `base` (rows, cols, 3) with the tiles' colours over grey tissue; other pixels stay untouched."""
    out = base.copy()
    within = _extent(raster.scored | raster.failed)
    scored, failed, here = raster.scored[within], raster.failed[within], out[within]
    colours = colours_of(raster.mean[within][scored], limits, colour_table())
    here[scored] = _blend(_tissue_grey(here[scored]), colours, alpha)
    if failed.any():
        row, col = np.nonzero(failed)
        pale = (row + within[0].start + col + within[1].start) // 4 % 2  # stripes: no score colour looks like them
        stripes = np.array([NO_DATA, [value + 60 for value in NO_DATA]])[pale]
        here[row, col] = _blend(_tissue_grey(here[row, col]), stripes, 0.85)
    return out


def _extent(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The smallest box around what is True: most of a slide is background."""
    rows, cols = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def thumbnail_jpeg(path: Path, width: int, quality: int = 85) -> bytes:
    """A picture file as JPEG of at most `width` pixels across, for embedding in a page."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        if small.width > width:
            small = small.resize((width, max(1, round(small.height * width / small.width))), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, format="JPEG", quality=quality, optimize=True)
    return out.getvalue()


def _fit(thumbnail: NDArray[np.uint8], style: OverlayStyle) -> NDArray[np.uint8]:
    rows, cols = thumbnail.shape[:2]
    longest = max(rows, cols)
    factor = min(max(1.0, style.min_px / longest), style.max_px / longest)
    if factor == 1.0:
        return thumbnail
    size = max(1, round(cols * factor)), max(1, round(rows * factor))
    return np.asarray(Image.fromarray(thumbnail).resize(size, Image.Resampling.LANCZOS))


def _edges(
    xy: NDArray[np.int64], span_px: int, shape: tuple[int, int], scale_xy: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The picture's columns and rows at which a tile begins or ends, with 0 and the picture's own end.

    Between two of them every pixel is alike: sums are made once for each such box, not for each pixel.
    """
    corners = np.concatenate(_corners(xy, span_px, scale_xy))
    columns, rows = (
        np.unique(np.clip(np.append(corners[:, axis], (0, side)), 0, side)) for axis, side in enumerate(shape[::-1])
    )
    return columns, rows


def _corners(
    xy: NDArray[np.int64], span_px: int, scale_xy: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Upper left and lower right corners (n, 2) of the tiles in pixels of the picture."""
    low = np.rint(xy / scale_xy).astype(np.int64)
    return low, np.maximum(np.rint((xy + span_px) / scale_xy).astype(np.int64), low + 1)


def _sum_boxes(
    xy: NDArray[np.int64],
    values: NDArray[np.float64],
    span_px: int,
    edges: tuple[NDArray[np.int64], NDArray[np.int64]],
    scale_xy: tuple[float, float],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of the values and number of the boxes between each two edges, by differences at the corners."""
    columns, rows = edges
    total, count = np.zeros((len(rows), len(columns))), np.zeros((len(rows), len(columns)))
    limit = np.array([columns[-1], rows[-1]])
    low, high = _corners(xy, span_px, scale_xy)
    inside = (low < limit).all(1)
    low, high, values = low[inside], np.minimum(high[inside], limit), values[inside]
    x0, x1 = (np.searchsorted(columns, corner[:, 0]) for corner in (low, high))
    y0, y1 = (np.searchsorted(rows, corner[:, 1]) for corner in (low, high))
    for y, x, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
        np.add.at(total, (y, x), sign * values)
        np.add.at(count, (y, x), sign)
    return total.cumsum(0).cumsum(1)[:-1, :-1], count.cumsum(0).cumsum(1)[:-1, :-1]


def _tissue_grey(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Lightness (n, 1) of pixels (n, 3), lifted by a fifth: dark nuclei must not turn a tile's colour into black."""
    return 51 + rgb @ np.array([[0.2126], [0.7152], [0.0722]], np.float32) * np.float32(0.8)


def _blend(under: NDArray[np.floating], colour: NDArray, alpha: float) -> NDArray[np.uint8]:
    mixed = under * np.float32(1 - alpha) + colour * np.float32(alpha)
    return np.rint(mixed, out=mixed).astype(np.uint8)


# --- the page around the picture -----------------------------------------------------------------------------------


def _page(picture: Image.Image, heatmap: Heatmap, mpp: float | None, style: OverlayStyle) -> Image.Image:
    """The picture on white paper: title above, legend below. `mpp` is µm per pixel of the picture."""
    em = int(np.clip(max(picture.size) / 52, 15, 56))
    pad = round(1.4 * em)
    width = max(picture.width + 2 * pad, 40 * em)
    head, foot = round(4.4 * em), round(5.2 * em)
    page = Image.new("RGB", (width, head + picture.height + foot), _PAPER)
    draw = ImageDraw.Draw(page)
    left = (width - picture.width) // 2
    page.paste(picture, (left, head))
    draw.rectangle((left - 1, head - 1, left + picture.width, head + picture.height), outline=_RULE)

    title, small = text_font(1.35 * em), text_font(em)
    draw.text((pad, 0.85 * em), _elide(heatmap.slide_id, title, width - 2 * pad), _INK, title)
    lost = f", {len(heatmap.failed_xy):,} without data" if len(heatmap.failed_xy) else ""
    line = _elide(f"{heatmap.name} · {heatmap.n_tiles:,} tiles{lost}", small, width - 2 * pad)
    draw.text((pad, 2.65 * em), line, _QUIET, small)
    if mpp is not None:
        _scale_bar(draw, (left, head, left + picture.width, head + picture.height), mpp, em)
    _legend(page, heatmap, (pad, head + picture.height + em), em, style)
    return page


def _legend(page: Image.Image, heatmap: Heatmap, corner: tuple[int, int], em: int, style: OverlayStyle) -> None:
    """A colour bar with numbers, in the colours as they look over light tissue, and a swatch for missing data."""
    draw, font, alpha = ImageDraw.Draw(page), text_font(em), style.alpha
    low, high = style.display or heatmap.limits
    (x, y), wide, high_px = corner, 20 * em, round(1.1 * em)
    bar = np.repeat(_blend(np.full((1, wide, 1), 215.0), colour_table(wide)[None], alpha), high_px, axis=0)
    title = f"{heatmap.name}, colours {low:.3g} to {high:.3g} ({style.note})" if style.note else heatmap.name
    draw.text((x, y), _elide(title, font, page.width - 2 * x), _INK, font)
    top = y + round(1.35 * em)
    bottom = top + high_px
    page.paste(Image.fromarray(bar), (x, top))
    draw.rectangle((x - 1, top - 1, x + wide, bottom), outline=_RULE)
    _numbers(draw, heatmap.limits, (low, high), (x, bottom, x + wide), em)
    if len(heatmap.failed_xy):
        at = x + wide + 2 * em
        everywhere = np.ones((high_px, high_px), bool)
        raster = TileRaster(np.zeros(everywhere.shape), ~everywhere, everywhere)
        swatch = paint_tiles(np.full((high_px, high_px, 3), 215, np.uint8), raster, heatmap.limits, alpha)
        page.paste(Image.fromarray(swatch), (at, top))
        draw.rectangle((at - 1, top - 1, at + high_px, bottom), outline=_RULE)
        draw.text((at + high_px + 0.6 * em, top + high_px / 2), "no data: not readable", _INK, font, "lm")


def _numbers(
    draw: ImageDraw.ImageDraw,
    limits: tuple[float, float],
    display: tuple[float, float],
    bar: tuple[int, int, int],
    em: int,
) -> None:
    """Numbers under the colour bar (left, bottom, right); an end that stands for more than its number says so."""
    (left, bottom, right), font, taken = bar, text_font(em), list[tuple[float, float]]()
    ends = {0: " or less" if display[0] > limits[0] else "", 4: " or more" if display[1] < limits[1] else ""}
    values = np.linspace(*display, 5)
    for step in (0, 4, 2, 1, 3):  # the ends first: a number that one of them would run into is left out
        at = left + round(step * (right - left - 1) / 4)
        draw.line((at, bottom, at, bottom + em // 4), _QUIET, max(1, em // 14))
        text, anchor = f"{values[step]:.3g}{ends.get(step, '')}", {0: "la", 4: "ra"}.get(step, "ma")
        first, _, last, _ = draw.textbbox((at, bottom + 0.35 * em), text, font, anchor)
        if all(last + em / 2 <= start or end + em / 2 <= first for start, end in taken):
            draw.text((at, bottom + 0.35 * em), text, _QUIET, font, anchor)
            taken.append((first, last))


def _scale_bar(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], mpp: float, em: int) -> None:
    """A round length, about a fifth of the picture, in its lower left corner on a white plate."""
    left, _, right, bottom = box
    length_um = nice_length((right - left) * mpp / 5)
    length_px = max(1, round(length_um / mpp))
    unit_um, unit = next((step for step in _UNITS if length_um >= step[0]), _UNITS[-1])
    font, text = text_font(em), f"{length_um / unit_um:g} {unit}"
    wide = max(length_px, round(font.getlength(text)))
    x, y = left + round(1.4 * em), bottom - round(1.5 * em)
    draw.rounded_rectangle(
        (x - 0.6 * em, y - 1.75 * em, x + wide + 0.6 * em, y + 0.7 * em), radius=em / 3, fill=_PAPER, outline=_RULE
    )
    draw.text((x + wide / 2, y - 0.35 * em), text, _INK, font, anchor="ms")
    start = x + (wide - length_px) // 2
    draw.rectangle((start, y, start + length_px - 1, y + max(2, em // 5)), fill=_INK)


def nice_length(wanted: float) -> float:
    """The largest of 1, 2, 5, 10, 20, 50 … that is not above `wanted` (> 0)."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return max(step * power for step in (1, 2, 5) if step * power <= wanted * (1 + 1e-9))


def text_font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # what Pillow gives when a size is asked for
    return font


def _elide(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, shortened in its middle to fit `width` pixels: ids differ at both ends."""
    # the built-in font is little more than ASCII: é becomes e, what has no likeness a question mark
    text = unicodedata.normalize("NFKD", " ".join(text.split()))
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = "".join(c if c.isascii() and c.isprintable() else "·" if c == "·" else "?" for c in text)
    keep = len(text)
    shown = text
    while font.getlength(shown) > width and keep > 2:
        keep -= 1
        shown = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
    return shown
