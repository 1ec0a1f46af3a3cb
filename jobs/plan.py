"""What a run would do and cost, from thumbnails alone: for --dry-run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tiling.grid import plan_grid
from tiling.tissue import find_tissue
from wsi.errors import EngineError

from .config import RunSpec
from .manifest import SlideRecord
from .stages import open_record


@dataclass
class Plan:
    """slides and tiles there would be, bytes written; failed: slide_id → problem."""

    slides: int = 0
    tiles: int = 0
    bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def plan_run(records: Sequence[SlideRecord], spec: RunSpec, progress: Callable[[int], None]) -> Plan:
    """Plan every slide's grid without writing anything."""
    plan = Plan()
    per_tile = 20 + 2 * spec.embed.entry().dim + (3 * spec.tile.tile_px**2 if spec.keep_patches else 0)
    for done, record in enumerate(records, start=1):
        try:
            with open_record(record) as slide:
                tiles = len(plan_grid(slide.levels, spec.tile, find_tissue(slide, spec.tile.tissue)))
        except EngineError as error:
            plan.failed[record.slide_id] = error.problem
        else:
            plan.slides, plan.tiles, plan.bytes = plan.slides + 1, plan.tiles + tiles, plan.bytes + tiles * per_tile
        progress(done)
    return plan
