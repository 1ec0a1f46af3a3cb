"""What a run would do and cost, from thumbnails alone (and quality, where tiles are left out): for --dry-run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tiling.patches import open_patches
from tiling.pixels import check_native
from wsi.errors import EngineError
from wsi.identity import slide_identity

from .config import RunSpec
from .folder import RunFolder
from .manifest import SlideRecord
from .pipeline import Job
from .run import Stage, problem_of, stage_name
from .tile_stage import grid_fingerprint, open_record, plan_slide, tiles_there

_PATCH_BYTES = {"none": 0.0, "raw": 3.0, "jpeg": 0.5, "native": 0.4}  # per pixel of a patch, about


@dataclass
class Plan:
    """Slides and tiles of the run; of these, slides tiled already; bytes to write; failed: slide_id → problem."""

    slides: int = 0
    tiles: int = 0
    there: int = 0
    bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def plan_run(records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder, progress: Callable[[int], None]) -> Plan:
    """Plan every slide's grid without writing anything."""
    plan = Plan()
    per_tile = 60 + 2 * spec.embed.entry().dim + _PATCH_BYTES[spec.patches] * spec.tile.tile_px**2
    for done, record in enumerate(records, start=1):
        try:
            tiles, there = _tiles(record, spec, folder)
        except EngineError as error:
            plan.failed[record.slide_id] = problem_of(error, record)
        except OSError as error:
            plan.failed[record.slide_id] = str(error)
        else:
            plan.slides, plan.tiles, plan.there = plan.slides + 1, plan.tiles + tiles, plan.there + there
            plan.bytes += 0 if there else round(tiles * per_tile)
        progress(done)
    return plan


def ready_for(job: Job, stage: Stage) -> Plan:
    """What embedding, predicting or drawing has to work on: tiles for the first, embeddings for the others."""
    from .bags import bag_for
    from .model_stages import open_model

    plan = Plan(failed={slide_id: receipt.problem for slide_id, receipt in job.failed().items()})
    model = open_model(job.spec.model) if job.spec.model else None
    for record in job.records:
        if record.slide_id in plan.failed:
            continue
        try:
            if stage_name(stage) == "embed" or model is None:
                tiles = len(open_patches(job.folder.tiles(record.slide_id)).grid)
            else:
                tiles = len(bag_for(model, record, job.folder)[1].ok)
        except EngineError as error:
            plan.failed[record.slide_id] = problem_of(error, record)
        else:
            plan.slides, plan.tiles = plan.slides + 1, plan.tiles + tiles
    return plan


def _tiles(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> tuple[int, bool]:
    """Number of a slide's tiles, and whether the run folder has them."""
    with open_record(record, spec) as slide:
        mark = grid_fingerprint(record, spec, slide_identity(record.path), slide)
        there = tiles_there(folder.tiles(record.slide_id), mark, spec)
        if there is not None:
            return there.tiles, True
        quality = spec.tile.quality
        looked = replace(quality, measure=bool(quality.exclude))  # it reads the tiles: only where it decides
        grid = plan_slide(record, replace(spec, tile=replace(spec.tile, quality=looked)), slide).grid
        if spec.patches == "native":
            check_native(slide, grid)
        return len(grid), False
