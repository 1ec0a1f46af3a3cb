"""Single steps over many slides: tile, embed, predict, heatmap."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .options import (
    EXECUTOR,
    TILE,
    WORKERS,
    DryRun,
    ModelDir,
    Out,
    Setting,
    SlideMpp,
    Source,
    at,
    numbers,
    option,
    read_records,
    with_settings,
    words,
)
from .options_embed import BACKBONE, EMBED

if TYPE_CHECKING:
    from jobs.pipeline import Job
    from jobs.run import Stage


HEATMAP = {
    "score": Setting(
        Annotated[
            str | None,
            option(
                "prediction (by default), attention, gradient or occlusion; each is a file of its own", takes="NAME"
            ),
        ],
        at("heatmap.score"),
    ),
    "formats": Setting(
        Annotated[
            list[str] | None,
            option(
                "What to write, by default geojson,png; of geojson, regions, contours, png, ome-tiff, ome-zarr",
                "--format",
                "-f",
                takes="NAMES",
            ),
        ],
        at("heatmap.formats", words),
    ),
    "class_name": Setting(
        Annotated[
            str | None,
            option("Whose output to draw; by default the positive or the predicted class", "--class", takes="NAME"),
        ],
        at("heatmap.class_name"),
    ),
    "min_score": Setting(
        Annotated[float | None, option("geojson: only tiles of at least this score", takes="X")],
        at("heatmap.min_score"),
    ),
    "top_k": Setting(
        Annotated[int | None, option("geojson: only so many tiles, of the highest score", "--top", takes="N")],
        at("heatmap.top_k"),
    ),
    "levels": Setting(
        Annotated[
            list[str] | None, option("Scores from which on regions and contours are outlined", "--level", takes="X")
        ],
        at("heatmap.levels", numbers),
    ),
    "min_area": Setting(
        Annotated[float | None, option("Leave out smaller outlines, in µm²", "--min-area", takes="AREA")],
        at("heatmap.min_area_um2"),
    ),
    "display": Setting(
        Annotated[
            str | None,
            option(
                "What colours are spread over: cohort (by default), definition, or two numbers: 0.2,0.8",
                "--range",
                takes="RANGE",
            ),
        ],
        at("heatmap.display"),
    ),
    "tiles": Setting(
        Annotated[int | None, option("Also so many tiles of the highest and the lowest score, as pictures", takes="N")],
        at("heatmap.tiles"),
    ),
}


@with_settings(TILE, BACKBONE, WORKERS)
def tile(
    source: Source, out: Out, settings: dict[str, Any], slide_mpp: SlideMpp = None, dry_run: DryRun = False
) -> None:
    """Find tissue and plan the tile grid of every slide, for a look at; with --patches, store the pixels."""
    from jobs.checks import check_run
    from jobs.tile_stage import tile_slide

    job = start(source, out, settings, slide_mpp)
    check_run(job.spec, job.records, job.folder)
    warn_off_native(job)
    if dry_run:
        end_dry_run(job)
    _finish(job, tile_slide)


@with_settings(EMBED, EXECUTOR)
def embed(source: Source, out: Out, settings: dict[str, Any], dry_run: DryRun = False) -> None:
    """Embed the tiles of every tiled slide with a backbone."""
    from jobs.stages import embed_slide

    job = start(source, out, settings, embeds=not dry_run)
    warn_off_native(job, tiled=True)
    job.recall("tile")
    _finish(job, embed_slide, dry_run)


@with_settings(WORKERS)
def predict(source: Source, out: Out, model: ModelDir, settings: dict[str, Any], dry_run: DryRun = False) -> None:
    """Predict the class of every embedded slide → predictions/<model>.csv."""
    from jobs.model_stages import predict_slide

    _finish(_start_with(model, source, out, settings), predict_slide, dry_run)


@with_settings(HEATMAP, WORKERS)
def heatmap(source: Source, out: Out, model: ModelDir, settings: dict[str, Any], dry_run: DryRun = False) -> None:
    """Draw the heatmap of every embedded slide: GeoJSON for QuPath, and a PNG overlay → heatmaps/<model>/."""
    from jobs.heatmap_stage import heatmap_slide

    _finish(_start_with(model, source, out, settings), heatmap_slide, dry_run)


def _objects(tiles: int, top_k: int | None, slides: int) -> str:
    """How much GeoJSON so many tiles are; a score that is asked for may leave fewer."""
    from heatmaps.geojson import packed_bytes

    objects = tiles if top_k is None else min(tiles, top_k * slides)
    return f"GeoJSON: at most {objects:,} tile objects, about {packed_bytes(objects, numbers=3) / 1e6:,.1f} MB packed"


def warn_off_native(job: "Job", tiled: bool = False) -> None:
    """Say where the tiles are not those of the backbone's authors; with --strict that is an error.

    tiled  the tiles are those that are there already, else those that the settings ask for
    """
    from jobs.checks import check_native, tiled_first

    from .console import err

    store = tiled_first(job.records, job.folder) if tiled else None
    for text in check_native(job.spec.embed, job.spec.tile if store is None else store.grid.spec):
        err.print("[yellow]warning[/] ", end="")
        err.print(text, markup=False)


def _start_with(model: Path, source: str, out: Path, settings: dict[str, Any]) -> "Job":
    from jobs.checks import check_contract
    from jobs.features import names_of
    from jobs.model_stages import open_model

    job = start(source, out, {**settings, "model": str(model)}, model=model)
    trained = open_model(model)
    check_contract(trained, job.folder)
    job.recall("tile", "embed", contract=names_of(trained.contract)[0])
    return job


def start(
    source: str,
    out: Path,
    settings: dict[str, Any],
    slide_mpp: float | None = None,
    model: Path | None = None,
    embeds: bool = False,
) -> "Job":
    """Check everything that can be checked before work: source, settings, model, weights. Writes nothing yet."""
    from jobs.config import resolve
    from jobs.folder import RunFolder
    from jobs.manifest import left_in
    from jobs.model_stages import open_model
    from jobs.pipeline import Job
    from jobs.stages import check_embedding

    from .console import err, say

    records = read_records(source, slide_mpp, out)
    if others := left_in(source, records):
        err.print(f"{others} other files in {source} are no slides by their suffix", markup=False, style="dim")
    trained = open_model(str(model)) if model is not None else None
    spec = resolve(settings, trained.contract if trained is not None else None)
    if embeds:
        say(check_embedding(spec, trained.contract if trained is not None else None), style="dim")
    return Job(records, spec, RunFolder(out))


def end_dry_run(job: "Job", embeds: bool = False) -> NoReturn:
    """Say what tiling, and embedding if the command embeds, would do and cost."""
    from jobs.plan import plan_run

    from .console import bar, err, say

    with bar("tile", len(job.records)) as show:
        plan = plan_run(job.records, job.spec, job.folder, lambda done: show(done, "planning"), embeds)
    for slide_id, problem in plan.failed.items():
        err.print(f"{slide_id}: {problem}", markup=False)
    for line in plan.words(job.spec):
        say(line)
    raise typer.Exit(1 if plan.failed else 0)


def _finish(job: "Job", stage: "Stage", dry_run: bool = False) -> None:
    from jobs.folder import command_line, run_facts, write_run
    from jobs.look import make_contact_sheet
    from jobs.plan import ready_for

    from .console import print_failures, run_shown, say

    if dry_run:
        ready = ready_for(job, stage)
        for slide_id, problem in ready.failed.items():
            say(f"{slide_id}: {problem}")
        say(f"{ready.slides} slides with {ready.tiles:,} tiles to do, {len(ready.failed)} not ready; nothing was done.")
        for line in ready.costs():
            say(line)
        if stage.__name__ == "heatmap_slide" and "geojson" in job.spec.heatmap.formats:
            say(_objects(ready.tiles, job.spec.heatmap.top_k, ready.slides))
        raise typer.Exit(1 if ready.failed else 0)
    job.folder.prepare()
    facts = run_facts(command_line(), settings_of(job))
    write_run(job.folder, facts, ended=False)
    run_shown(job, stage)
    if stage.__name__ == "predict_slide":
        say(f"predictions: {write_table(job)}")
    if stage.__name__ == "embed_slide" and (place := where_embedded(job)) is not None:
        say(f"embeddings: {place}")
    if stage.__name__ == "tile_slide":
        say(f"tissue: {make_contact_sheet(job.folder, facts['command'])}")
    write_run(job.folder, facts)
    raise typer.Exit(print_failures(job))


def where_embedded(job: "Job") -> Path | None:
    """The folder that the slides' embeddings are in, by the first slide that is tiled."""
    from embedding.contract import contract_name
    from jobs.agreed import agreed
    from jobs.checks import tiled_first
    from jobs.stages import contract_of, lossy_pixels

    store = tiled_first(job.records, job.folder)
    if store is None:
        return None
    embed = agreed(job.spec.embed, job.folder)
    return job.folder.embeddings(contract_name(contract_of(embed, store.grid.spec, lossy_pixels(store))), "").parent


def settings_of(job: "Job") -> dict[str, Any]:
    from jobs.config import as_settings

    return as_settings(job.spec)


def write_table(job: "Job") -> Path:
    """The predictions of a job as CSV; returns its path."""
    from jobs.model_stages import open_model
    from jobs.prediction_table import write_predictions

    model = open_model(str(job.spec.model))
    # a slide whose picture could not be drawn is predicted all the same
    failed = {key: receipt.problem for key, receipt in job.failed().items() if receipt.stage != "heatmap"}
    write_predictions(job.records, model, job.folder, failed)
    return job.folder.predictions(model.name)
