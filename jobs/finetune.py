"""Fine-tune a backbone on labelled tiles, drawn regions or slide labels: what it would cost, and doing it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding.weights import weights_of
from mil.finetune import Cohort, given_split, split_cohort
from wsi.errors import SpecError

from .config import RunSpec
from .folder import RunFolder
from .manifest import read_source
from .slide_table import read_records

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mil.finetune import Base, Memory, Watcher

    from .finetune_slides import Chosen


@dataclass(frozen=True)
class Asked:
    """Where labels and pixels are.

    source   tiles: a CSV with path, label, group, perhaps split; else slides, as for `wsi run`
    out      the adapter's folder
    images   tiles: the folder or zip that the paths are in; None for the table's own folder
    run      regions, slides: the run folder with the slides' tiles
    regions  a file or folder of drawn regions
    classes  the classes of regions, or labels of slides, that count; () for all
    """

    source: str
    out: Path
    images: Path | None = None
    run: Path | None = None
    regions: Path | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """What would be done: the parts in words, what is trained and what it needs, and bytes of pixels that slides are
    read into."""

    parts: Mapping[str, str]
    memory: "Memory"
    pixel_bytes: int


def plan_finetuning(asked: Asked, spec: RunSpec) -> Planned:
    """Check everything that can be checked before work, and say what it would cost. Reads no slide's pixels."""
    import numpy as np

    from mil.finetune import PARTS, check_out, plan

    check_out(asked.out, None)
    with _cohort(asked, spec, None) as (cohort, parts, chosen):
        _, memory = plan(cohort, parts, base_of(spec), spec.finetune)
        absent = sum(len(one.rows) for one in chosen if not one.store.has_patches)
        said = {name: cohort.in_words(np.flatnonzero(parts == part)) for part, name in enumerate(PARTS)}
        return Planned(said, memory, absent * cohort.tile_px**2 * 3)


def finetune_backbone(asked: Asked, spec: RunSpec, watcher: "Watcher") -> Mapping[str, Any]:
    """Fine-tune, and publish the adapter at `asked.out`; returns its facts. Goes on with what was interrupted."""
    import numpy as np

    from mil.finetune import PARTS, check_out, finetune

    check_out(asked.out, None)
    with _cohort(asked, spec, watcher) as (cohort, parts, _):
        for part, name in enumerate(PARTS):
            watcher.say(f"{name}: {cohort.in_words(np.flatnonzero(parts == part))}")
        return finetune(cohort, parts, base_of(spec), spec.finetune, asked.out, watcher)


def base_of(spec: RunSpec) -> "Base":
    """The backbone to begin with. Raises BackboneError where its weights are not there, SpecError for an adapter."""
    from mil.finetune import Base

    if spec.embed.adapter is not None:
        raise SpecError("--adapter", "an adapter is not trained on top of another", "leave it out")
    return Base(spec.embed.entry(), weights_of(spec.embed))


@contextmanager
def _cohort(
    asked: Asked, spec: RunSpec, watcher: "Watcher | None"
) -> "Iterator[tuple[Cohort, NDArray[np.int8], Sequence[Chosen]]]":
    """The cohort and its parts; without a watcher only to be planned with. Files it needs are gone afterwards."""
    ours = spec.finetune
    if ours.labels == "tiles":
        from .finetune_tiles import TilePictures, read_tile_table, tiles_cohort

        source = Path(asked.source)
        if source.suffix.lower() != ".csv":
            raise SpecError("SOURCE", f"{source} is no table", "give a CSV: path,label,group; or --labels slides")
        table = read_tile_table(source)
        pictures = TilePictures(asked.images or source.parent, table.paths)
        try:
            cohort = tiles_cohort(table, pictures)
            yield cohort, _parts(cohort, table.split, spec), ()
        finally:
            pictures.close()
        return
    yield from _of_run(asked, spec, watcher)


def _of_run(
    asked: Asked, spec: RunSpec, watcher: "Watcher | None"
) -> "Iterator[tuple[Cohort, NDArray[np.int8], Sequence[Chosen]]]":
    from .finetune_slides import choose_tiles, read_chosen, slides_cohort

    ours = spec.finetune
    if asked.run is None:
        raise SpecError("--run", f"--labels {ours.labels} needs the slides' tiles", "name the folder of `wsi tile`")
    if (ours.labels == "regions") != (asked.regions is not None):
        raise SpecError("--regions", "it goes with --labels regions", "give both, or neither")
    records = read_source(asked.source, read_records(RunFolder(asked.run)))
    chosen = choose_tiles(records, RunFolder(asked.run), ours, asked.regions, asked.classes)
    file, pixels = asked.out.with_name(f".{asked.out.name}.pixels.npy"), None
    try:
        if watcher is not None:
            chosen, pixels = read_chosen(chosen, spec, file, watcher.step)
        cohort = slides_cohort(chosen, ours, pixels)
        yield cohort, _parts(cohort, _stated(chosen, cohort), spec), chosen
    finally:
        del pixels
        file.unlink(missing_ok=True)


def _stated(chosen: "Sequence[Chosen]", cohort: Cohort) -> list[str] | None:
    """The parts that the manifest's column `split` states, for each item; None where it has none."""
    said = [one.record.extra.get("split", "") for one in chosen]
    if not any(said):
        return None
    if not all(said):
        raise SpecError("split", "some slides have no part", "fill the manifest's column, or remove it")
    if cohort.of_slides:
        return said
    return [word for one, word in zip(chosen, said, strict=True) for _ in one.rows]


def _parts(cohort: Cohort, said: Sequence[str] | None, spec: RunSpec) -> "NDArray[np.int8]":
    folds, seed = spec.finetune.folds, spec.finetune.seed
    return split_cohort(cohort, folds, seed) if said is None else given_split(cohort, said, folds, seed)
