"""Heatmaps of a run against regions that people drew: does the model look where the finding is?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tiling.patches import open_patches
from tiling.regions import SUFFIXES, of_classes, region_file
from wsi.errors import SpecError

from .bags import bag_for, with_others
from .folder import RunFolder
from .heatmap_stage import tiles_here
from .manifest import SlideRecord

if TYPE_CHECKING:
    from shapely import Polygon

    from mil.evaluation.detection import Candidates
    from mil.model import TrainedModel

INSIDE = 0.5  # share of a tile from which on it is of the region
MARKED = 0.5  # score of a tile from which on it is part of a detection


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A slide's tiles (n,): what the model says of each alone, the share that is drawn, their corners in tiles."""

    patient: str
    scores: NDArray[np.float64]
    share: NDArray[np.float64]
    corners: NDArray[np.int64]
    tile_um: float
    found: "Candidates"


def localise(
    records: Sequence[SlideRecord], model: "TrainedModel", folder: RunFolder, regions: Path, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """Figures of tile scores against drawn regions, with intervals over patients.

    regions  a folder with one file of regions for each slide (GeoJSON, ASAP, ImageScope); slides without one are left
             out and counted, a file without regions says that there is none
    classes  of these only, all objects if empty
    A tile is of a region from half of it on, none of it is of none, and those between are left out of the AUROC. Masks
    and detections (joined tiles) are those of a score of at least one half. Raises SpecError for a folder without a
    file of any slide, and for a model whose tiles have no score in [0, 1].
    """
    from mil.evaluation.detection import froc
    from mil.evaluation.judge_parts import figure
    from mil.evaluation.localisation import mean_over_slides, overlap, tile_auroc

    if model.task.limits != (0.0, 1.0):
        problem = f"a model of {model.task.spec.name} does not say of a tile what it is"
        raise SpecError("--regions", problem, "leave it out")
    drawn = [r for r in with_others(records, model.training.level) if _has_file(regions, r.slide_id)]
    if not drawn:
        raise SpecError(
            "--regions", f"{regions} has no file of any slide", "name each by its slide: <slide_id>.geojson"
        )
    places = [place for record in drawn if (place := _place(record, model, folder, regions, classes)) is not None]
    patients = [place.patient for place in places]
    clear = [(place.share >= INSIDE) | (place.share == 0) for place in places]
    ranked = tile_auroc(
        [place.scores[keep] for place, keep in zip(places, clear, strict=True)],
        [place.share[keep] >= INSIDE for place, keep in zip(places, clear, strict=True)],
        patients,
    )
    # where nothing is drawn a mask has nothing to overlap: false alarms there count in the FROC
    sick = [place for place in places if (place.share >= INSIDE).any()]
    overlaps, owners = [overlap(*_masks(place), place.tile_um) for place in sick], [place.patient for place in sick]
    found = froc([place.found for place in places])
    how = f"of {len(sick)} slides with regions"
    figures = [
        figure("tile AUROC", ranked.pooled, "all tiles"),
        figure("tile AUROC", ranked.mean, "mean of slides"),
        figure("Dice", mean_over_slides([one.dice for one in overlaps], owners), how),
        figure("IoU", mean_over_slides([one.iou for one in overlaps], owners), how),
        figure("HD95", mean_over_slides([one.hd95_um for one in overlaps], owners), how, "lower", unit="µm"),
        figure("FROC score", found.score, "CAMELYON16"),
    ]
    left = len(records) - len(places)
    notes = [f"{left} slides have no file of regions, or no tiles, and take no part in localisation"] if left else []
    return {"figures": figures, "froc": found.as_dict(), "slides": len(places), "notes": notes}


def _has_file(regions: Path, slide_id: str) -> bool:
    if not regions.is_dir():
        raise SpecError("--regions", f"{regions} is no folder", "give one with a file of regions for each slide")
    return any((regions / f"{slide_id}{suffix}").is_file() for suffix in SUFFIXES)


def _place(
    record: SlideRecord, model: "TrainedModel", folder: RunFolder, regions: Path, classes: Sequence[str]
) -> Place | None:
    """One slide's tiles beside what is drawn on it; None without tiles."""
    import shapely

    from mil.evaluation.localisation import tiles_against_regions
    from mil.predict import predict

    bag, mine, _ = bag_for(model, record, folder)
    if not mine.bag.tiles:
        return None
    prediction = predict(model, bag)
    scores = prediction.scores[tiles_here(bag, mine), prediction.drawn].astype(np.float64)
    path = region_file(regions, record.slide_id, "--regions")
    shapes = [one.geometry for one in of_classes(path, classes, regions, "--region-class") if one.geometry.area > 0]
    lesions = [part for part in shapely.get_parts(shapely.union_all(shapes)) if part.area > 0] if shapes else []
    xy, span = mine.bag.xy, mine.bag.span_px
    corners = np.round((xy - xy.min(axis=0)) / span).astype(np.int64)
    return Place(
        record.patient_id,
        scores,
        tiles_against_regions(xy, span, lesions),
        corners,
        span * float(open_patches(folder.tiles(record.slide_id)).attrs["slide"]["mpp"]),
        _detections(record.patient_id, scores, corners, xy + span / 2, lesions),
    )


def _masks(place: Place) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What is marked and what is drawn, on the lattice of tiles: two of bool (rows, cols)."""
    columns, rows = place.corners.max(axis=0) + 1
    marked, drawn = np.zeros((rows, columns), bool), np.zeros((rows, columns), bool)
    x, y = place.corners.T
    marked[y, x], drawn[y, x] = place.scores >= MARKED, place.share >= INSIDE
    return marked, drawn


def _detections(
    patient: str,
    scores: NDArray[np.float64],
    corners: NDArray[np.int64],
    centres: NDArray[np.floating],
    lesions: "Sequence[Polygon]",
) -> "Candidates":
    """Marked tiles that touch are one detection: its best tile's centre and score."""
    from scipy import ndimage

    from mil.evaluation.detection import Candidates, hits_in_polygons

    columns, rows = corners.max(axis=0) + 1
    lattice, x, y = np.zeros((rows, columns), bool), *corners.T
    lattice[y, x] = scores >= MARKED
    label = ndimage.label(lattice, np.ones((3, 3)))[0][y, x]
    best = [int(np.where(label == k, scores, -np.inf).argmax()) for k in range(1, int(label.max(initial=0)) + 1)]
    hit = hits_in_polygons(centres[best].reshape(-1, 2), lesions)
    return Candidates(scores[best], hit, len(lesions), patient)
