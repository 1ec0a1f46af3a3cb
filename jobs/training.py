"""Train a model on the embedded slides of a run."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from heatmaps.evaluation_report import FlowStep
from wsi.errors import ManifestError, StoreError
from wsi.publish import fingerprint

from .bags import bag_id, columns_of, mark_of, slide_bag, with_truth
from .config import RunSpec, as_settings
from .folder import RunFolder, command_line, run_facts
from .manifest import SlideRecord
from .model_card import write_card
from .receipts import FAILED, latest, read_receipts
from .report import all_synthetic
from .stages import AS_JPEG, contract_of, has_fitting

if TYPE_CHECKING:
    from mil.bag import Bag
    from mil.model import TrainedModel

_KEPT = ("splits.csv", "splits.json", "history.csv")

Progress = Callable[[int, int, float, float | None], None]


def left_out(records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder) -> list[str]:
    """Ids of labelled slides that failed to tile or embed: their failure is on record, so training goes on without.

    A failure with another backbone does not count against embeddings that are there.
    """
    names = embeddings_of(spec)
    tile, embed = (latest(read_receipts(folder.receipts(stage))) for stage in ("tile", "embed"))

    def failed(slide_id: str) -> bool:
        if slide_id in tile and tile[slide_id].status == FAILED:
            return True
        if slide_id not in embed or embed[slide_id].status != FAILED:
            return False
        return not all(has_fitting(folder.features(name, slide_id), folder, slide_id) for name in names)

    known = with_truth(records, spec.train.task, spec.train.level)
    return [record.slide_id for record in known if failed(record.slide_id)]


def embeddings_of(spec: RunSpec) -> tuple[str, ...]:
    """Names of the folders of embeddings that the settings name, or ask for."""
    from embedding.contract import contract_name

    if spec.features:
        return spec.features
    return (contract_name(contract_of(spec.embed, spec.tile, AS_JPEG if spec.patches == "jpeg" else None)),)


def train_model(
    records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder, name: str, progress: Progress | None = None
) -> "TrainedModel":
    """Cross-validate a head over all labelled slides, by patient, and publish it as models/<name>.

    With `spec.train.regions` it learns from these, too: see `region_bags`.

    Slides that failed earlier are left out (see `left_out`). Raises ManifestError without labels, StoreError when any
    other labelled slide has no embeddings of the asked contract. A training that was killed is taken up where it was.
    """
    from mil.crossval import cross_validate
    from mil.model import save_model
    from mil.ranges import tile_ranges
    from mil.tracking import open_tracker

    from .region_bags import region_bags, regions_mark

    regions = region_bags(records, spec, folder)
    bags = [*load_bags(records, spec, folder), *regions]
    # a folder for each kind of training: two at once under one name do not mix their splits
    kind = fingerprint(spec.train, [bag.name for bag in bags], bags[0].contract_hash, regions_mark(regions))
    work = folder.root / "training" / f"{name}-{kind}"
    kept = work if spec.train.track == "csv" else folder.root / "tracking" / name
    tracker = open_tracker(spec.train.track, kept)
    model = cross_validate(bags, spec.train, progress=progress, resume=work, tracker=tracker)
    model = replace(model, name=name, ranges=tile_ranges(model, bags))
    facts = run_facts(command_line(), as_settings(spec))
    cards = write_card(model, work, facts, _flow(records, spec, folder), synthetic=all_synthetic(records))
    files = {path.name: path for path in (*(work / file for file in _KEPT), *cards)}
    save_model(model, folder.model(name), {file: path for file, path in files.items() if path.is_file()})
    shutil.rmtree(work, ignore_errors=True)  # finished; the same training, run twice at once, may have removed it
    return model


def _flow(records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder) -> list[FlowStep]:
    """From the manifest to what was trained on, and why others were not."""
    known = with_truth(records, spec.train.task, spec.train.level)
    trained = to_train_on(records, spec, folder)
    steps, before = [], [record.slide_id for record in records]
    for name, kept, why in (
        ("in the manifest", records, ""),
        ("with what is to be predicted", known, "no truth"),
        ("trained and cross-validated on", trained, "failed to tile or embed"),
    ):
        ids = {record.slide_id for record in kept}
        gone = [slide_id for slide_id in before if slide_id not in ids]
        steps.append(FlowStep(name, len(kept), len({r.patient_id for r in kept}), {why: gone} if gone else {}))
        before = [record.slide_id for record in kept]
    return steps


def load_bags(records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder) -> "list[Bag]":
    """Bags of all slides, cases or patients to train on, in the manifest's order, from one memory-mapped file.

    The file lies in cohorts/ and is made anew when it is not of just these embeddings and rows of the manifest.
    """
    from mil.cohort import cohort_mark, mapped_cohort

    names, groups = embeddings_of(spec), grouped(to_train_on(records, spec, folder), spec.train.level)
    groups = [sorted(group, key=lambda record: record.slide_id) for group in groups]  # as `whole_bag` lays them
    marks = [[mark_of(record, names, folder) for record in group] for group in groups]
    rows = [[(r.slide_id, r.patient_id, r.case_id, r.label, columns_of(r)) for r in group] for group in groups]
    place = folder.root / "cohorts" / "-".join([*names, spec.train.level])
    return mapped_cohort(place, cohort_mark(marks, names, rows), lambda: _bags(groups, names, folder))


def grouped(records: Sequence[SlideRecord], level: str) -> list[list[SlideRecord]]:
    """The slides of each bag, in the order in which bags first occur."""
    groups: dict[str, list[SlideRecord]] = {}
    for record in records:
        groups.setdefault(bag_id(record, level), []).append(record)
    return list(groups.values())


def _bags(groups: list[list[SlideRecord]], names: tuple[str, ...], folder: RunFolder) -> "Iterator[Bag]":
    from mil.bag import merge_bags

    for group in groups:
        yield merge_bags([slide_bag(record, names, folder).bag for record in group])


def to_train_on(records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder) -> list[SlideRecord]:
    """Slides of bags with what is to be predicted that did not fail earlier; each has its embeddings, else StoreError.

    The target may be in any columns (see TaskSpec), and in the row of any slide of a case or patient.
    """
    task = spec.train.task
    wanted = (task.time, task.event) if task.is_survival else (task.target,)
    known = with_truth(records, task, spec.train.level)
    if not known:
        column = " and ".join(f"`{name}`" for name in wanted)
        raise ManifestError(wanted[0], "no slide has one", f"add a {column} column to the manifest")
    failed, names = set(left_out(records, spec, folder)), embeddings_of(spec)
    labelled = [record for record in known if record.slide_id not in failed]
    if not labelled:
        raise StoreError(folder.root, "every labelled slide failed to tile or embed", "see its receipts")
    for name in names:
        missing = [record.slide_id for record in labelled if not folder.features(name, record.slide_id).exists()]
        if missing:
            raise _missing(missing, len(labelled), name, folder)
    return labelled


def _missing(missing: Sequence[str], labelled: int, where: str, folder: RunFolder) -> StoreError:
    named = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
    others = ", ".join(sorted(entry.name for entry in folder.root.glob("embeddings/*") if entry.name != where))
    hint = f"; there are those of {others}, to be named with --features" if others else ""
    return StoreError(
        Path("embeddings") / where,
        f"{len(missing)} of {labelled} labelled slides have no embeddings there ({named})",
        "run `wsi embed` with the same settings, or leave those slides out of the manifest" + hint,
    )
