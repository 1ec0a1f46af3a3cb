"""wsi review: what people said of a run's slides, out to training and QuPath, and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jobs.manifest import SlideRecord
    from jobs.review import Review

app = typer.Typer(
    name="review",
    help="What people said of a run's slides: export it for training, read QuPath's, ask for what teaches most.",
    no_args_is_help=True,
)

Run = Annotated[Path, typer.Argument(help="A run folder", metavar="RUN")]
Manifest = Annotated[
    str | None,
    typer.Option("--source", help="The manifest, where the run is of an older version and kept none", metavar="FILE"),
]


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for labels.csv and regions/", metavar="FOLDER")],
    source: Manifest = None,
    model: Annotated[
        str | None, typer.Option(help="Whose prediction was accepted, where models differ", metavar="NAME")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also slides that nobody reviewed, with the manifest's label", metavar="")
    ] = False,
) -> None:
    """Write the reviewed labels and regions, as `wsi train` and `wsi finetune` take them."""
    from jobs.review.export import export_review

    from .console import note, say

    records = _records(run, source)
    made = export_review(_review(run, records), records, out, model, everything)
    say(f"{made.labels}: {made.labelled} slides with a class")
    say(f"{made.regions}: {made.drawn} regions of {made.files} slides")
    if made.undecided:
        note(f"accepted, but models differ or say nothing of them: {_named(made.undecided)}; choose one with --model")
    if made.nameless:
        note(f"left out, as the run knows no row of them: {_named(made.nameless)}; name the manifest with --source")


@app.command("import")
def take_in(
    run: Run,
    files: Annotated[
        Path, typer.Argument(help="Annotations: of one slide, or a folder with SLIDE_ID.geojson", metavar="FILE|FOLDER")
    ],
    who: Annotated[str, typer.Option("--who", help="Name of who drew them", metavar="NAME")],
    slide: Annotated[
        str | None, typer.Option(help="The slide, where the file's name does not say it", metavar="ID")
    ] = None,
    deleted: Annotated[
        bool, typer.Option("--reject-deleted", help="Suggestions that are gone from a file were rejected", metavar="")
    ] = False,
    source: Manifest = None,
) -> None:
    """Take what was drawn, edited or relabelled in QuPath (or ASAP, ImageScope) into the review."""
    from jobs.review.taken_back import take_back

    from .console import err, say

    refused = 0
    for one in take_back(_review(run, _records(run, source)), files, who, slide, "reject" if deleted else "keep"):
        say(f"{one.slide_id}: " + (", ".join(f"{count} {what}" for what, count in one.done.items()) or "nothing"))
        for problem in one.refused:
            err.print(f"  {problem}", markup=False)
        refused += len(one.refused)
    raise typer.Exit(1 if refused else 0)


@app.command()
def suggest(
    run: Run,
    model: Annotated[Path, typer.Option("--model", "-m", help="A model's folder", metavar="FOLDER")],
    count: Annotated[int, typer.Option("-k", help="How many regions", metavar="N", min=1, max=5000)] = 50,
    by: Annotated[
        str, typer.Option(help="mixed, uncertainty, disagreement, diversity; random to compare with", metavar="HOW")
    ] = "mixed",
    per_slide: Annotated[
        int | None, typer.Option(help="At most of one slide; by default three times an even share", metavar="N")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn at random", metavar="N")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also as GeoJSON for QuPath, a file a slide", metavar="FOLDER")
    ] = None,
    source: Manifest = None,
) -> None:
    """Choose the regions whose labels would teach the model most: the queue of `wsi view`."""
    from collections import Counter

    from jobs.folder import RunFolder
    from jobs.model_stages import open_model
    from jobs.review.suggest import suggest as choose
    from jobs.review.suggest import write_for_qupath
    from mil.active import ChoiceSpec

    from .console import note, say

    trained = open_model(model)
    found = choose(RunFolder(run), trained, _records(run, source), ChoiceSpec(count, by, per_slide, seed))
    slides = Counter(one.slide_id for one in found.suggestions)
    labels = Counter(one.label for one in found.suggestions)
    said = ", ".join(f"{number} that the model calls {label}" for label, number in labels.most_common())
    say(f"{len(found.suggestions)} regions of {len(slides)} slides" + (f": {said}" if said else ""))
    say(f"queue: wsi view {run}", style="dim")
    if out is not None:
        say(f"for QuPath: {len(write_for_qupath(found.suggestions, out, trained.classes))} files in {out}")
    for why in sorted(set(found.left_out.values())):
        note(f"left out, {why}: {_named([one for one, reason in found.left_out.items() if reason == why])}")


def _records(run: Path, source: str | None) -> "list[SlideRecord]":
    """The run's rows of its manifest; of older runs, its slides by name alone."""
    from jobs.folder import RunFolder
    from jobs.manifest import SlideRecord, read_source
    from jobs.slide_table import read_records
    from wsi.errors import StoreError

    if not run.is_dir():
        raise StoreError(run, "there is no such run folder", "give the --out of `wsi run`")
    if source is not None:
        return read_source(source)
    known = read_records(RunFolder(run))
    names = {path.name.removesuffix(".zarr") for path in run.glob("embeddings/*/[!.]*.zarr")}
    names |= {path.name.removesuffix(".zarr") for path in run.glob("tiles/[!.]*.zarr")}
    return [known.get(name) or SlideRecord(name, Path(), name, name) for name in sorted(names | known.keys())]


def _review(run: Path, records: "list[SlideRecord]") -> "Review":
    from jobs.folder import RunFolder
    from jobs.review import Review
    from jobs.slide_sizes import slide_sizes

    folder: Any = RunFolder(run)
    classes = sorted({record.label for record in records if record.label})
    return Review(folder.review, slide_sizes(folder, [record.slide_id for record in records]), classes)


def _named(names: "tuple[str, ...] | list[str]") -> str:
    return ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
