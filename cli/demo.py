"""wsi demo: the whole road on a synthetic cohort."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jobs.pipeline import Job


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for slides and results", metavar="FOLDER")] = Path(
        "demo"
    ),
    patients: Annotated[int, typer.Option(help="Synthetic patients, an even number", min=10, metavar="N")] = 24,
) -> None:
    """Make a SYNTHETIC cohort, run every stage on it, and end with a report. No network, no GPU."""
    from jobs.config import load_recipe, resolve
    from jobs.folder import RunFolder, command_line, run_facts, write_run
    from jobs.heatmap_stage import heatmap_slide
    from jobs.look import make_contact_sheet
    from jobs.model_stages import predict_slide
    from jobs.pipeline import Job
    from jobs.report import DEMO_MODEL, make_report
    from jobs.stages import embed_slide
    from jobs.tile_stage import tile_slide

    from .console import print_failures, run_shown, say
    from .stages import settings_of, write_table
    from .train import show_training

    started = time.monotonic()
    settings = load_recipe("demo")
    folder = RunFolder(out / "run")
    folder.prepare()
    facts = run_facts(command_line(), settings)
    write_run(folder, facts, ended=False)
    say(f"A synthetic cohort of {patients} patients, its slides under {out / 'slides'}, results under {folder.root}.")
    records = _make_slides(out / "slides", patients)
    job = Job(records, resolve(settings), folder)
    run_shown(job, tile_slide, embed_slide)
    if code := print_failures(job):
        raise typer.Exit(code)
    show_training(records, job.spec, folder, DEMO_MODEL)
    job.spec = resolve({**settings, "model": str(folder.model(DEMO_MODEL))})
    run_shown(job, predict_slide, heatmap_slide)
    write_table(job)
    figures = _judge(job)
    facts["settings"] = settings_of(job)
    write_run(folder, facts)
    make_contact_sheet(folder, facts["command"])
    report = make_report(job, facts, figures, "slidestream demo: a synthetic cohort")
    _say(figures, time.monotonic() - started)
    say(f"\nOpen {report}", style="bold")
    raise typer.Exit(print_failures(job))


def _make_slides(folder: Path, patients: int) -> list:
    from dataclasses import replace

    from jobs.demo import COHORT, make_cohort
    from jobs.executors import cpu_count
    from jobs.manifest import read_manifest
    from wsi.synthetic import plan_cohort

    from .console import VERBS, bar
    from .console import out as console

    started = time.monotonic()
    cohort = replace(COHORT, patients=patients)
    with bar("make", len(plan_cohort(folder, cohort))) as show:
        records = read_manifest(make_cohort(folder, cohort, cpu_count(), show))
    console.print(f"[bold]{VERBS['make']:<13}[/] {len(records)} slides  [dim]{time.monotonic() - started:.1f} s[/]")
    return records


def _judge(job: "Job") -> dict:
    from jobs.demo import truth_figures
    from jobs.evaluation import evaluate_run

    model = str(job.spec.model)
    return evaluate_run(job.records, model, job.folder, truth_figures(job.records, job.folder, model))


def _say(figures: dict, seconds: float) -> None:
    from .console import out as console
    from .train import show_estimate

    metrics, colour = figures["metrics"], figures["baselines"][0]
    console.print(f"\nSlide AUROC    {show_estimate(metrics['headline'])}, cross-validated by patient")
    console.print(f"Tile AUROC     {figures['tile_auroc']['value']:.3f}: the heatmaps against the truth maps")
    console.print(f"Mean colour    {colour['auroc']['value']:.3f}: what the slides' colour alone would reach")
    console.print(f"Time           {seconds / 60:.1f} min")
