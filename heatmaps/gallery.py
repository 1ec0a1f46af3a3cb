"""The tiles that scored highest and lowest, side by side: what a person looks at to know what a model looks at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsi.publish import appear_file

from .overlay import text_font

SIDE, GAP, COLUMNS = 160, 10, 5
_INK, _QUIET, _PAPER = (30, 33, 38), (105, 110, 118), (255, 255, 255)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Tiles under one heading: pictures uint8 (k, t, t, 3), and the score of each."""

    title: str
    pictures: NDArray[np.uint8]
    scores: Sequence[float]


def draw_gallery(title: str, rows: Sequence[Row], path: Path) -> None:
    """Write a PNG that shows every row's tiles, five beside each other, with their scores below."""
    em, line = 15, 24
    lines = [-(-max(1, len(row.scores)) // COLUMNS) for row in rows]
    height = 2 * GAP + line + sum(line + count * (SIDE + line) + GAP for count in lines)
    page = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, height), _PAPER)
    draw, top = ImageDraw.Draw(page), GAP
    draw.text((GAP, top), title, _INK, text_font(1.1 * em))
    top += line
    for row, count in zip(rows, lines, strict=True):
        draw.text((GAP, top), row.title, _QUIET, text_font(em))
        top += line
        for place, (picture, score) in enumerate(zip(row.pictures, row.scores, strict=True)):
            x, y = GAP + place % COLUMNS * (SIDE + GAP), top + place // COLUMNS * (SIDE + line)
            page.paste(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
            draw.text((x + SIDE / 2, y + SIDE + 3), f"{score:.3f}", _INK, text_font(0.9 * em), anchor="ma")
        top += count * (SIDE + line) + GAP
    with appear_file(path) as draft:
        page.save(draft, format="PNG")
