"""What a person did to suggestions and regions in QuPath, taken back into the review by their UUIDs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid4, uuid5

from tiling.regions import SUFFIXES
from wsi.annotations import Annotation, read_annotations
from wsi.errors import ReviewError, SpecError

from .geojson import uuid_of
from .review import Review

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

_SAME_PX = 0.6  # QuPath keeps outlines in whole or tenths of pixels


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What was done with the objects of one slide's file, by word; refused: why some were not taken."""

    slide_id: str
    done: Counter[str]
    refused: tuple[str, ...]


def take_back(
    review: Review, place: Path, who: str, slide_id: str | None = None, missing: str = "keep"
) -> list[TakenBack]:
    """Read a file of annotations, or a folder with one for each slide, into the review, under the name `who`.

    A known region that has another outline or class is edited or relabelled; a suggestion that is unchanged, and is
    still there, is left open, as having been looked at is not to be seen in a file. New ones are added with their
    class. The same file a second time changes nothing.

    slide_id  of a single file whose name does not say it
    missing   of suggestions that are in the file no more: keep, or reject those that were deleted in QuPath
    Raises SpecError where a file belongs to no slide, AnnotationError where it cannot be read.
    """
    files = sorted(path for path in place.iterdir() if path.name.endswith(SUFFIXES)) if place.is_dir() else [place]
    if not files:
        raise SpecError(place, "there is no file of annotations in it", f"name them SLIDE_ID{SUFFIXES[0]}")
    of = {path: slide_id or _slide_of(path, review) for path in files}
    return [_of_slide(review, slide, path, who, missing) for path, slide in of.items()]


def _slide_of(path: Path, review: Review) -> str:
    name = next((path.name.removesuffix(end) for end in sorted(SUFFIXES, key=len)[::-1] if path.name.endswith(end)), "")
    if name not in review.slides:
        raise SpecError(path, "it is named after no slide of the run", "name the slide with --slide")
    return name


def _of_slide(review: Review, slide_id: str, path: Path, who: str, missing: str) -> TakenBack:
    state = review.of(slide_id)
    known = {uuid_of(region["id"]): region for region in state["regions"]}
    done, refused, there = Counter[str](), list[str](), set[str]()
    for number, one in enumerate(read_annotations(path), start=1):
        if one.kind in ("tile", "detection", "cell"):  # a heatmap's tiles, say: nobody drew them
            done["no annotation"] += 1
            continue
        region = known.get(one.id.lower())
        there.add(one.id.lower())
        asked = _added(one, slide_id) if region is None else _changed(one, region)
        for action in asked:
            try:
                review.act(slide_id, {"event": str(uuid4()), "who": who, **action})
                done[_WORDS[action["action"]]] += 1
            except ReviewError as error:
                if error.problem != _THERE:
                    refused.append(f"object {number}: {error.problem}")
        if not asked:
            done["unchanged"] += 1
    for name, region in known.items():
        if missing == "reject" and name not in there and region["status"] == "open":
            review.act(slide_id, {"event": str(uuid4()), "who": who, "action": "region-reject", "id": region["id"]})
            done["rejected"] += 1
    return TakenBack(slide_id, done, tuple(refused))


_WORDS = {
    "region-add": "added",
    "region-edit": "outline changed",
    "region-relabel": "class changed",
    "region-accept": "accepted",
}
_THERE = "a region of this id is there"


def _added(one: Annotation, slide_id: str) -> list[dict[str, Any]]:
    import shapely

    shape = one.geometry
    content = f"{slide_id} {shapely.to_wkt(shape, rounding_precision=1)}"
    own = one.id if one.id and uuid_of(one.id) == one.id.lower() else str(uuid5(NAMESPACE_URL, content))
    label = ": ".join(one.classes) or None
    return [{"action": "region-add", "region": {"id": own.lower(), "geometry": _plain(shape), "label": label}}]


def _changed(one: Annotation, region: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """What makes the region as it is in the file."""
    from shapely.geometry import shape

    before, asked = shape(region["geometry"]), []
    if before.hausdorff_distance(one.geometry) > _SAME_PX:
        asked.append({"action": "region-edit", "region": {"id": region["id"], "geometry": _plain(one.geometry)}})
    label = ": ".join(one.classes) or None
    if label is not None and label != region["label"]:
        asked.append({"action": "region-relabel", "id": region["id"], "label": label})
    elif asked and region["status"] == "open" and region["label"] is not None:  # who mends an outline stands by it
        asked.append({"action": "region-accept", "id": region["id"]})
    return asked


def _plain(shape: "BaseGeometry") -> dict[str, Any]:
    """GeoJSON with lists, as a viewer sends it."""
    import json

    import shapely

    plain: dict[str, Any] = json.loads(shapely.to_geojson(shape))
    return plain
