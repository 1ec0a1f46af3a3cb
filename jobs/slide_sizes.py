"""How large a run's slides are, without their files."""

from collections.abc import Iterable
from contextlib import suppress

from tiling.patches import open_patches
from wsi.errors import EngineError

from .folder import RunFolder


def slide_sizes(folder: RunFolder, slide_ids: Iterable[str]) -> dict[str, tuple[int, int] | None]:
    """(width, height) in level-0 pixels of each slide as its tiles know it, None where it has none that can be read."""
    return {slide_id: _size(folder, slide_id) for slide_id in slide_ids}


def _size(folder: RunFolder, slide_id: str) -> tuple[int, int] | None:
    with suppress(EngineError):  # damaged tiles are no reason not to review a slide
        slide = open_patches(folder.tiles(slide_id)).attrs.get("slide", {})
        return (int(slide["width"]), int(slide["height"])) if {"width", "height"} <= set(slide) else None
    return None
