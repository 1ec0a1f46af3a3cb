"""wsi run: the main job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import MODEL, TILE, WORKERS, DryRun, Out, SlideMpp, Source, with_settings
from .options_embed import EMBED

if TYPE_CHECKING:
    from jobs.pipeline import Job

OptionalModel = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        help="A trained model's folder; without one the run stops after the embeddings",
        rich_help_panel=MODEL,
        metavar="FOLDER",
    ),
]


@with_settings(EMBED, TILE, WORKERS)
def run(
    source: Source,
    out: Out,
    settings: dict[str, Any],
    model: OptionalModel = None,
    slide_mpp: SlideMpp = None,
    dry_run: DryRun = False,
    check: Annotated[
        bool,
        typer.Option("--verify", help="First read every result that is there, and redo what is damaged", metavar=""),
    ] = False,
    check_inputs: Annotated[
        bool,
        typer.Option("--verify-inputs", help="Also compare every slide's checksum with the first one", metavar=""),
    ] = False,
) -> None:
    """Tile, embed, predict and draw every slide, and write the report. A re-run does only what is missing."""
    from jobs.checks import check_run

    from .stages import end_dry_run, start, warn_off_native
    from .verify import verify

    if model is not None:
        settings["model"] = str(model)
    job = start(source, out, settings, slide_mpp, settings.get("model"), embeds=not dry_run)
    check_run(job.spec, job.records, job.folder)
    warn_off_native(job)
    if dry_run:
        end_dry_run(job, embeds=True)
    job.folder.prepare()
    if check or check_inputs:
        verify(job, check_inputs)
    raise typer.Exit(work(job))


def work(job: "Job") -> int:
    """Run every stage, write the table and the report; returns the exit code."""
    from jobs.folder import command_line, run_facts, write_run
    from jobs.heatmap_stage import heatmap_slide
    from jobs.look import make_contact_sheet
    from jobs.model_stages import predict_slide
    from jobs.report import make_report
    from jobs.stages import embed_slide
    from jobs.tile_stage import tile_slide

    from .console import out, print_failures, run_shown, say
    from .stages import settings_of, write_table

    facts = run_facts(command_line(), settings_of(job))
    write_run(job.folder, facts, ended=False)
    run_shown(job, tile_slide, embed_slide, *((predict_slide, heatmap_slide) if job.spec.model else ()))
    statuses = {receipt.status for receipts in job.receipts.values() for receipt in receipts}
    if job.halted is None and statuses == {"skipped"}:
        out.print("Nothing to do: all of it was already there.")
    if job.spec.model:
        say(f"predictions: {write_table(job)}")
    else:
        out.print("No --model was given, so the run stops after the embeddings.")
    write_run(job.folder, facts)
    code = print_failures(job)
    say(f"tissue: {make_contact_sheet(job.folder, facts['command'])}")
    say(f"report: {make_report(job, facts)}")
    return code
