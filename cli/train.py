"""wsi train and wsi evaluate."""

from typing import Annotated, Any

import typer

from .options import MODEL, TILE, DryRun, ModelDir, Out, Setting, Source, read_records, with_settings
from .options_embed import VECTORS

_T = {name: TILE[name] for name in ("tile_px", "tile_mpp", "icc", "channels")}
_B = {name: VECTORS[name] for name in VECTORS if name not in ("strict", "offline")}


def _train(kind: Any, text: str, key: str, takes: str = "N") -> Setting:
    return Setting(
        Annotated[kind, typer.Option(help=text, rich_help_panel=MODEL, metavar=takes)], lambda value: {key: value}
    )


TRAIN = {
    "head": _train(str | None, "abmil, mean or max; by default abmil", "train.head", "NAME"),
    "folds": _train(int | None, "Cross-validation folds; by default 5", "train.folds"),
    "epochs": _train(int | None, "Epochs at most", "train.epochs"),
    "seed": _train(int | None, "Seed of splits and training", "train.seed"),
}


@with_settings(TRAIN, _B, _T)
def train(
    source: Source,
    out: Out,
    name: Annotated[
        str, typer.Option("--name", "-n", help="Of the model: run/models/NAME", rich_help_panel=MODEL, metavar="NAME")
    ],
    settings: dict[str, Any],
    features: Annotated[
        str | None,
        typer.Option(
            help="Which embeddings: a folder's name in run/embeddings; needed where several fit",
            rich_help_panel=MODEL,
            metavar="NAME",
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Train a slide classifier on embedded slides, cross-validated by patient. The manifest needs a `label` column."""
    from jobs.config import as_settings, resolve
    from jobs.features import choose_features
    from jobs.folder import RunFolder, command_line, run_facts, write_run

    from .console import say

    records, folder = read_records(source, None), RunFolder(out)
    check_name(name)
    resolve(settings)  # what is wrong with the settings is said before what is missing in the folder
    chosen, contract = choose_features(settings, features, folder)
    made_here = "origin" not in contract  # embeddings of another tool say less than settings hold
    spec = resolve({**settings, "features": chosen}, contract if made_here else None)
    say(f"embeddings: {folder.root / 'embeddings' / chosen}", style="dim")
    if dry_run:
        say(describe_cohort(records, spec, folder) + "; nothing was done.")
        raise typer.Exit(0)
    folder.prepare()
    facts = run_facts(command_line(), as_settings(spec))
    show_training(records, spec, folder, name)
    write_run(folder, facts)
    say(f"model: {folder.model(name)}")


def describe_cohort(records: list, spec: object, folder: object) -> str:
    """What would be trained on: 12 slides of 10 patients (6 normal, 6 tumor), 5 folds."""
    from collections import Counter

    from jobs.training import to_train_on

    cohort = to_train_on(records, spec, folder)  # type: ignore[arg-type]
    counts = Counter(record.label for record in cohort)
    classes = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
    patients = len({record.patient_id for record in cohort})
    return f"{len(cohort)} slides of {patients} patients ({classes}), {spec.train.folds} folds"  # type: ignore[attr-defined]


def show_training(records: list, spec: object, folder: object, name: str) -> object:
    """Train with a bar, and print the cross-validated figures; returns the model."""
    import time

    from jobs.training import left_out, train_model

    from .console import bar, say
    from .console import out as console

    started = time.monotonic()
    if without := left_out(records, spec, folder):  # type: ignore[arg-type]
        named = ", ".join(without[:10]) + (" …" if len(without) > 10 else "")
        say(f"note: {len(without)} labelled slides failed earlier and are left out: {named}", style="yellow")
    total = spec.train.folds * spec.train.epochs  # type: ignore[attr-defined]
    with bar("train", total) as show:

        def step(fold: int, epoch: int, loss: float, validation: float | None) -> None:
            note = f"fold {fold + 1}, loss {loss:.3f}" + (
                f", validation {validation:.3f}" if validation is not None else ""
            )
            show(fold * spec.train.epochs + epoch + 1, note)  # type: ignore[attr-defined]

        model = train_model(records, spec, folder, name, step)  # type: ignore[arg-type]
    figures = model.metrics
    console.print(
        f"[bold]{'Training':<13}[/] {len(model.cohort)} slides, {figures['patients']} patients, "
        f"{len(model.weights)} folds: AUROC {show_estimate(figures['auroc'])}  "
        f"[dim]{time.monotonic() - started:.1f} s[/]"
    )
    return model


def show_estimate(estimate: dict) -> str:
    """0.912 (95 % interval 0.83 to 0.97), or why there is none."""
    if estimate["value"] is None:
        return f"not known: {estimate['reason']}"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f} (no interval: {estimate['reason']})"
    return f"{estimate['value']:.3f} (95 % interval {estimate['low']:.3f} to {estimate['high']:.3f})"


def check_name(name: str) -> None:
    """Refuse a model's name that is no plain folder name."""
    from jobs.manifest import ID_RULE
    from wsi.errors import SpecError

    if not ID_RULE.fullmatch(name):
        raise SpecError("--name", f"{name!r} is no plain folder name", "use letters, digits, '.', '_' and '-'")


def evaluate(source: Source, out: Out, model: ModelDir) -> None:
    """Judge predictions against the manifest's labels: AUROC with its interval, confusion; then the report."""
    from embedding.contract import contract_name
    from jobs.demo import truth_figures
    from jobs.evaluation import evaluate_run
    from jobs.folder import command_line, run_facts, write_run
    from jobs.model_stages import open_model
    from jobs.report import make_report

    from .console import out as console
    from .console import say
    from .stages import settings_of, start

    job = start(source, out, {"model": str(model)}, model=model)
    contract = contract_name(dict(open_model(model).contract))
    job.recall("tile", "embed", contract=contract)
    result = evaluate_run(job.records, str(model), job.folder, truth_figures(job.records, job.folder, str(model)))
    figures = result["metrics"]
    console.print(
        f"{figures['slides']} slides of {figures['patients']} patients: AUROC {show_estimate(figures['auroc'])}, "
        f"accuracy {figures['accuracy']:.3f}, balanced {figures['balanced_accuracy']:.3f}"
    )
    for line in result["notes"]:
        say(f"note: {line}", style="yellow")
    say(f"figures: {job.folder.evaluation(result['model'])}")
    facts = run_facts(command_line(), settings_of(job))
    write_run(job.folder, facts)
    say(f"report: {make_report(job, facts, result)}")
