"""What a reader process does: answers to questions about one slide, or about one file of a run.

Only what is wrong with a slide or a file is caught here. All else ends the process, which is replaced.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiling.patches import PatchStore, open_patches
from tiling.thumbnail import Thumbnail, read_thumbnail
from wsi import open_slide, slide_identity
from wsi.channels import Channels
from wsi.errors import EngineError, SlideError, StoreError
from wsi.slide import Slide

from . import pixels
from .fault import Fault, without_paths
from .pack import pack_grid, pack_heatmap
from .place import Place

OPEN_SLIDES, OPEN_STORES = 8, 16  # that a process keeps open


@dataclass
class _Kept:
    """What is open, the longest unused first."""

    slides: OrderedDict[Place, Slide] = field(default_factory=OrderedDict)
    stores: OrderedDict[tuple[Path, int], PatchStore] = field(default_factory=OrderedDict)
    thumbnails: OrderedDict[Place, Thumbnail] = field(default_factory=OrderedDict)


_kept = _Kept()


def answer(kind: str, *arguments: Any) -> Any:
    """The answer to a question by its kind, or a Fault."""
    try:
        return _KINDS[kind](*arguments)
    except EngineError as error:
        _forget(arguments)
        return Fault(422, "This cannot be shown", without_paths(f"{error.problem}; {error.args[2]}"))
    except (OSError, MemoryError) as error:
        _forget(arguments)
        words = error.strerror if isinstance(error, OSError) and error.strerror else "not enough memory"
        return Fault(503, "This cannot be read now", f"{words}; try again")


def _tile(place: Place, level: int, x: int, y: int) -> bytes | Fault:
    slide = _readable(place)
    if slide is None:
        store = _store(place)
        base = store.attrs["slide"]
        found = pixels.tile_region(base["width"], base["height"], level, x, y)
        if found is None:
            return _no_tile()
        return pixels.encode(pixels.enlarge(_thumbnail(place, slide), *found))
    found = pixels.tile_region(slide.levels[0].width, slide.levels[0].height, level, x, y)
    if found is None:
        return _no_tile()
    return pixels.encode(pixels.draw_region(slide, *found, lambda: _thumbnail(place, slide)))


def _no_tile() -> Fault:
    return Fault(404, "No such tile", "the slide's pyramid does not reach there")


def _patch(place: Place, x: int, y: int, side: int, px: int) -> bytes:
    slide = _readable(place)
    if slide is not None:
        return pixels.encode(pixels.draw_patch(slide, x, y, side, px))
    region, factor = pixels.patch_region(x, y, side, px)
    return pixels.encode(pixels.enlarge(_thumbnail(place, slide), region, factor))


def _thumbnail_jpeg(place: Place, width: int) -> bytes:
    """From the run's store where there is one, which needs no look at the slide."""
    if place.store is not None and (place.store / "zarr.json").is_file():
        thumbnail = _store(place).thumbnail
    else:
        thumbnail = _thumbnail(place, _readable(place))
    picture = thumbnail.pixels
    if thumbnail.unread.any():
        picture = picture.copy()
        picture[thumbnail.unread] = pixels.hatched(*picture.shape[:2])[thumbnail.unread]
    return pixels.encode(pixels.shrink(picture, width))


def _facts(place: Place) -> dict[str, Any]:
    """Of the slide as its file tells, or as the run knew it; `pixels`: why the file cannot be shown, or None."""
    problem = _problem(place)
    if problem is None:
        slide = _slide(place)
        assert slide is not None
        info, levels = slide.info, slide.levels
        found = {name: getattr(info, name) for name in info.__dataclass_fields__}
        return {**found, "width": levels[0].width, "height": levels[0].height, "levels": len(levels), "pixels": None}
    facts = _store(place).attrs["slide"]
    return {**facts, "levels": len(facts["levels"]), "pixels": problem}


def _problem(place: Place) -> str | None:
    """Why the slide's file cannot be shown. Raises EngineError where the run has no picture of it either."""
    problem = None
    if place.path is None:
        problem = "it is not known where the slide's file lies; start the viewer with --slides FOLDER"
    elif isinstance(place.path, Path) and not place.path.exists():
        problem = "the slide's file is not where it was; start the viewer with --slides FOLDER"
    else:
        try:
            _slide(place)
            return None
        except EngineError as error:
            if place.store is None or not place.store.exists():
                raise
            problem = without_paths(error.problem)
    if place.store is None or not place.store.exists():
        raise SlideError("the slide", problem.partition(";")[0], "start the viewer with --slides FOLDER")
    return problem


def _associated(place: Place, name: str) -> bytes | Fault:
    slide = _slide(place)
    if slide is None or name not in slide.info.associated:
        return Fault(404, "No such picture", "the slide has no associated image of this name")
    return pixels.encode(pixels.shrink(slide.associated(name), 2048))


def _tissue(place: Place) -> bytes:
    outline = _store(place).attrs["tissue_outline"]
    feature = {"type": "Feature", "geometry": outline, "properties": {"classification": {"name": "tissue"}}}
    return json.dumps({"type": "FeatureCollection", "features": [feature]}).encode()


def _grid(place: Place) -> bytes:
    return pack_grid(_store(place))


def _scores(scores: Path | None, tiles: Path | None) -> bytes:
    """Of the file of numbers; older runs have only that of tiles for QuPath."""
    from heatmaps.geojson_read import read_geojson
    from heatmaps.scores import read_scores
    from jobs.heatmap_files import HeatmapFiles

    if scores is not None:
        drawn = HeatmapFiles(scores.with_name(scores.name.removesuffix(".scores.npz"))).recorded().get("display")
        return pack_heatmap(read_scores(scores), None if drawn is None else (drawn[0], drawn[1]))
    if tiles is None:
        raise StoreError("heatmap", "there is none of this slide", "draw it with `wsi heatmap`")
    return pack_heatmap(read_geojson(tiles))


def _annotations(path: Path) -> bytes:
    from shapely.geometry import mapping

    from wsi.annotations import read_annotations

    features = [
        {
            "type": "Feature",
            "geometry": mapping(one.geometry),
            "properties": {"name": one.name, "classification": {"name": ": ".join(one.classes)}}
            if one.classes
            else {"name": one.name},
        }
        for one in read_annotations(path)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def _slide(place: Place) -> Slide | None:
    """The open slide; None where its file is not known or not there, and the run has a picture of it."""
    found = _kept.slides.get(place)
    if found is not None:
        _kept.slides.move_to_end(place)
        return found
    if place.path is None or (place.store is not None and isinstance(place.path, Path) and not place.path.exists()):
        return None
    if place.identity is not None and slide_identity(place.path) != place.identity:
        raise StoreError("the slide's file", "it is another than the one that the run read", "run `wsi run` again")
    channels = Channels.parse(place.channels) if place.channels else None
    slide = open_slide(place.path, place.mpp, "manifest", channels)
    _kept.slides[place] = slide
    while len(_kept.slides) > OPEN_SLIDES:
        _kept.slides.popitem(last=False)[1].close()
    return slide


def _readable(place: Place) -> Slide | None:
    """The open slide; None where it cannot be opened, and the run has a picture of it."""
    try:
        return _slide(place)
    except EngineError:
        if place.store is None or not place.store.exists():
            raise
        return None


def _store(place: Place) -> PatchStore:
    if place.store is None:
        raise StoreError("the slide", "it belongs to no run", "make one with `wsi run`")
    record = place.store / "zarr.json"
    key = place.store, record.stat().st_mtime_ns if record.is_file() else 0
    if key not in _kept.stores:
        _kept.stores[key] = open_patches(place.store)
    _kept.stores.move_to_end(key)
    while len(_kept.stores) > OPEN_STORES:
        _kept.stores.popitem(last=False)
    return _kept.stores[key]


def _thumbnail(place: Place, slide: Slide | None) -> Thumbnail:
    if place not in _kept.thumbnails:
        if slide is None or (place.store is not None and (place.store / "zarr.json").is_file()):
            thumbnail = _store(place).thumbnail
        else:
            thumbnail = read_thumbnail(slide)
        _kept.thumbnails[place] = thumbnail
        while len(_kept.thumbnails) > OPEN_SLIDES:
            _kept.thumbnails.popitem(last=False)
    return _kept.thumbnails[place]


def _forget(arguments: tuple[Any, ...]) -> None:
    """Open a slide that failed anew next time: some readers fail for ever after one damaged tile."""
    if arguments and isinstance(arguments[0], Place):
        slide = _kept.slides.pop(arguments[0], None)
        if slide is not None:
            slide.close()


_KINDS: dict[str, Any] = {
    "tile": _tile,
    "patch": _patch,
    "thumbnail": _thumbnail_jpeg,
    "facts": _facts,
    "associated": _associated,
    "tissue": _tissue,
    "grid": _grid,
    "scores": _scores,
    "annotations": _annotations,
}
