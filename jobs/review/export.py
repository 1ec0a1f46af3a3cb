"""What people said, as tables and files that training takes as they are."""

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiling.regions import SUFFIXES
from wsi.errors import SpecError
from wsi.publish import appear_file, write_json
from wsi.source import is_url

from ..folder import RunFolder
from ..manifest import KNOWN, SlideRecord
from ..slide_table import read_records
from .geojson import feature_collection
from .review import Review
from .state import Region, SlideState

REVIEWED = ("reviewed_by", "reviewed_at", "predicted")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the table with its slides that have a label, and a file of regions for so many slides.

    undecided  slides that were accepted while models said different things of them, or nothing
    nameless   reviewed slides that the run knows no manifest row of: they are in no table
    """

    labels: Path
    labelled: int
    regions: Path
    files: int
    drawn: int
    undecided: tuple[str, ...]
    nameless: tuple[str, ...]


def export_review(
    review: Review, records: Sequence[SlideRecord], out: Path, model: str | None = None, everything: bool = False
) -> Exported:
    """Write labels.csv and regions/<slide_id>.geojson into `out`.

    The table has the manifest's columns; its label is the class that a reviewer gave or accepted. Slides with no such
    class are in it, without one, where regions of theirs have: training takes those from `regions`.

    model       whose prediction it was that was accepted, where models differ
    everything  also the slides that nobody reviewed, with the label that the manifest gives them; not those rejected
    """
    root = RunFolder(review.folder.parent)
    records = [record for record in records if record.path != Path()]  # of older runs the ids alone are known
    states, known = review.states(), {record.slide_id: record for record in records}
    predicted = {slide: predicted_class(state, root, model) for slide, state in states.items()}
    regions = {slide: kept for slide, state in states.items() if (kept := _with_class(state.regions.values()))}
    wanted = {slide for slide in states if _label(states[slide], predicted[slide])} | regions.keys()
    if everything:
        wanted |= {slide for slide in known if slide not in states or states[slide].status != "rejected"}
    rows = []
    for record in records:
        if record.slide_id in wanted:
            state, said = states.get(record.slide_id), predicted.get(record.slide_id)
            label = None if state is None else _label(state, said)
            untouched = everything and (state is None or state.status == "open")
            rows.append(_row(record, label or (record.label if untouched else None), state, said))
    if unknown := sorted(wanted - known.keys()):
        problem = f"it knows no row of the manifest for {len(unknown)} reviewed slides ({', '.join(unknown[:3])})"
        raise SpecError(root.root, problem, "name the manifest with --source")
    if not rows:
        problem = "nobody has accepted or relabelled a slide, or given a region a class"
        raise SpecError(review.folder, problem, "review some in `wsi view` first")
    out.mkdir(parents=True, exist_ok=True)
    with appear_file(out / "labels.csv") as draft:
        draft.write_text(_table(rows), encoding="utf-8", newline="")
    _write_regions(out / "regions", {slide: kept for slide, kept in regions.items() if slide in known}, review.classes)
    undecided = [slide for slide, state in states.items() if state.status == "accepted" and not predicted[slide]]
    return Exported(
        out / "labels.csv",
        sum(bool(row["label"]) for row in rows),
        out / "regions",
        sum(slide in known for slide in regions),
        sum(len(kept) for slide, kept in regions.items() if slide in known),
        tuple(undecided),
        tuple(sorted(wanted - known.keys())),
    )


def labels_text(states: Mapping[str, SlideState], root: Path) -> str:
    """The table of labels of the slides that have one, in the manifest's columns where the run knows its rows."""
    folder = RunFolder(root)
    records, rows = read_records(folder), []
    for slide_id, state in states.items():
        said = predicted_class(state, folder, None)
        if label := _label(state, said):
            record = records.get(slide_id) or SlideRecord(slide_id, Path(), "", "")
            rows.append(_row(record, label, state, said))
    return _table(rows)


def predicted_class(state: SlideState, folder: RunFolder, model: str | None) -> str | None:
    """The class that was accepted: what the model said of the slide as it was, else what it says of it now.

    Without a model, what all of them say; None where they differ or say nothing.
    """
    said = dict(state.predicted) or _predictions(state.slide_id, folder)
    found = {said[model]} if model is not None and model in said else set() if model is not None else set(said.values())
    return found.pop() if len(found) == 1 else None


def _predictions(slide_id: str, folder: RunFolder) -> dict[str, str]:
    found = {}
    for path in sorted(folder.root.glob("predictions/*/")):
        file = path / f"{slide_id}.json"
        said = json.loads(file.read_text(encoding="utf-8")).get("predicted") if file.is_file() else None
        if isinstance(said, str):
            found[path.name] = said
    return found


def _label(state: SlideState, predicted: str | None) -> str | None:
    return {"accepted": predicted, "relabelled": state.label}.get(state.status)


def _with_class(regions: Collection[Region]) -> list[Region]:
    """Those that a person stands by, with a class."""
    return [region for region in regions if region.status in ("accepted", "relabelled") and region.label is not None]


def _row(record: SlideRecord, label: str | None, state: SlideState | None, predicted: str | None) -> dict[str, str]:
    place = str(record.path) if is_url(record.path) else str(Path(record.path).absolute())
    facts = {"slide_id": record.slide_id, "path": "" if record.path == Path() else place}
    facts |= {"case_id": record.case_id, "patient_id": record.patient_id, "label": label or ""}
    facts |= {"mpp": "" if record.mpp is None else repr(record.mpp), "site": record.site or ""}
    facts |= {name: value for name, value in record.extra.items() if name not in (*KNOWN, *REVIEWED)}
    said = state if state is not None and state.status != "open" else None
    who = ("", "") if said is None else (said.who or "", said.when or "")
    return facts | dict(zip(REVIEWED, (*who, predicted or ""), strict=True))


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    columns = [name for name in KNOWN if name != "tissue"]
    others = sorted({name for row in rows for name in row} - {*columns, *REVIEWED})
    out = io.StringIO(newline="")
    table = csv.DictWriter(out, [*columns, *others, *REVIEWED], restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return out.getvalue()


def _write_regions(folder: Path, regions: Mapping[str, list[Region]], classes: Sequence[str]) -> None:
    """A file for each slide; those of an earlier export that no region is left of go."""
    folder.mkdir(parents=True, exist_ok=True)
    for slide_id, kept in regions.items():
        write_json(folder / f"{slide_id}.geojson", feature_collection(slide_id, kept, classes))
    for path in folder.iterdir():
        if path.name.endswith(SUFFIXES) and path.name.removesuffix(".geojson") not in regions:
            path.unlink()
