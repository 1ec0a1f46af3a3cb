"""wsi train."""

from typing import Annotated, Any

import typer

from .options import COMPUTING, MODEL, TILE, DryRun, Out, Setting, Source, option, read_records, with_settings
from .options_embed import VECTORS

_T = {name: TILE[name] for name in ("tile_px", "tile_mpp", "icc", "channels")}
_B = {name: VECTORS[name] for name in VECTORS if name not in ("strict", "offline", "precision")}
TARGET, TRAINING = "What is predicted", "Training"


def _train(kind: Any, text: str, key: str, takes: str = "N", panel: str = TRAINING, name: str | None = None) -> Setting:
    names = [name] if name else []
    return Setting(Annotated[kind, option(text, *names, panel=panel, takes=takes)], lambda value: {key: value})


def _words(kind: Any, text: str, key: str, takes: str, panel: str) -> Setting:
    """An option that takes several words, divided by commas."""
    return Setting(
        Annotated[kind, option(text, panel=panel, takes=takes)],
        lambda value: {key: [word.strip() for word in value.split(",") if word.strip()]},
    )


_OPTIONAL = str | None
TASK = {
    "task": _train(
        _OPTIONAL,
        "classification (by default), multilabel, ordinal, regression, cox, survival",
        "train.task.name",
        "NAME",
        TARGET,
    ),
    "target": _train(_OPTIONAL, "Column of the truth; by default label", "train.task.target", "COLUMN", TARGET),
    "time": _train(_OPTIONAL, "Column of the time to event; by default time", "train.task.time", "COLUMN", TARGET),
    "event": _train(
        _OPTIONAL, "Column that is 1 where it came; by default event", "train.task.event", "COLUMN", TARGET
    ),
    "classes": _words(
        _OPTIONAL,
        "Classes in order, A,B: the positive one last; by default sorted",
        "train.task.classes",
        "A,B",
        TARGET,
    ),
    "level": _train(_OPTIONAL, "A bag is a slide (by default), case or patient", "train.level", "NAME", TARGET),
    "covariates": _words(
        _OPTIONAL, "Columns that speak beside the tiles: age,sex", "train.covariates", "COLUMNS", TARGET
    ),
}
TRAIN = {
    "head": _train(_OPTIONAL, "By default abmil; `wsi train --heads` lists them", "train.head", "NAME", MODEL),
    "fusion": _train(
        _OPTIONAL,
        "Of several --features: early (by default), or late: a head each",
        "train.fusion",
        "KIND",
        MODEL,
    ),
    "calibrate": _train(
        _OPTIONAL,
        "platt (by default), temperature, isotonic or none, on held-out folds",
        "train.calibrate",
        "METHOD",
    ),
    "folds": _train(int | None, "Cross-validation folds; by default 5", "train.folds"),
    "repeats": _train(int | None, "Of the cross-validation, on other partitions", "train.repeats"),
    "stratify": _words(
        _OPTIONAL, "Spread these columns evenly over folds: site", "train.stratify", "COLUMNS", TRAINING
    ),
    "splits": _train(_OPTIONAL, "Use the folds of this splits.csv", "train.splits", "FILE"),
    "regions": _train(
        _OPTIONAL,
        "Learn also from drawn regions: a folder with SLIDE_ID.geojson for each slide, as `wsi review export` writes",
        "train.regions",
        "FOLDER",
    ),
    "epochs": _train(int | None, "Epochs at most", "train.epochs"),
    "search": _train(
        int | None, "Trials of a hyper-parameter search within every fold's training part", "train.search"
    ),
    "track": _train(
        _OPTIONAL, "Where the course of training is kept: csv, tensorboard, mlflow, wandb", "train.track", "NAME"
    ),
    "device": _train(_OPTIONAL, "auto, cpu, cuda, mps", "train.device", "NAME", COMPUTING),
    "precision": _train(_OPTIONAL, "Of training: auto, fp32, bf16, fp16", "train.precision", "KIND", COMPUTING),
    "seed": _train(int | None, "Seed of splits and training", "train.seed"),
}


def _show_heads(wanted: bool) -> None:
    if not wanted:
        return
    from mil.heads import described

    from .console import out

    for name, text in described().items():
        out.print(f"[bold]{name:<22}[/] ", end="")
        out.print(text, markup=False)
    raise typer.Exit


@with_settings(TASK, TRAIN, _B, _T)
def train(
    source: Source,
    out: Out,
    name: Annotated[
        str, typer.Option("--name", "-n", help="Of the model: run/models/NAME", rich_help_panel=MODEL, metavar="NAME")
    ],
    settings: dict[str, Any],
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Which embeddings, by name of a folder in run/embeddings; again for several backbones, joined",
            rich_help_panel=MODEL,
            metavar="NAME",
        ),
    ] = None,
    heads: Annotated[
        bool, typer.Option("--heads", callback=_show_heads, is_eager=True, help="List the heads, and exit", metavar="")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Train a model on embedded slides, cross-validated by patient, calibrated on what each network did not see."""
    from jobs.config import as_settings, resolve
    from jobs.features import choose_features
    from jobs.folder import RunFolder, command_line, run_facts, write_run
    from wsi.errors import SpecError

    from .console import note, say

    records, folder = read_records(source, None, out), RunFolder(out)
    check_name(name)
    resolve(settings)  # what is wrong with the settings is said before what is missing in the folder
    if twice := [one for one in features or () if (features or []).count(one) > 1]:
        raise SpecError("--features", f"{twice[0]!r} is named twice", "name each once")
    chosen = [choose_features(settings, one, folder) for one in (features or (None,))]
    made_here = len(chosen) == 1 and not {"origin", "tiles"} & set(chosen[0][1])  # else settings say more than it does
    spec = resolve({**settings, "features": [one for one, _ in chosen]}, chosen[0][1] if made_here else None)
    for one, _ in chosen:
        say(f"embeddings: {folder.features(one, '').parent}", style="dim")
    if any("adapter" in contract for _, contract in chosen):
        note(
            "a fine-tuned backbone made these embeddings; figures are honest only where no patient here took "
            "part in its training (split.csv in the adapter's folder)"
        )
    if dry_run:
        say(describe_cohort(records, spec, folder) + "; nothing was done.")
        raise typer.Exit(0)
    folder.prepare()
    facts = run_facts(command_line(), as_settings(spec))
    show_training(records, spec, folder, name)
    write_run(folder, facts)
    say(f"model: {folder.model(name)}")


def describe_cohort(records: list, spec: Any, folder: Any) -> str:
    """What would be trained on: 12 slides of 10 patients (6 normal, 6 tumor), 5 folds."""
    from collections import Counter

    from jobs.bags import columns_of
    from jobs.training import grouped, to_train_on

    task = spec.train.task
    cohort = to_train_on(records, spec, folder)
    patients, bags = len({record.patient_id for record in cohort}), len(grouped(cohort, spec.train.level))
    truth = [columns_of(record).get(task.target) or record.label for record in cohort]
    counts = Counter(truth) if task.name in ("classification", "ordinal") else {}
    classes = f" ({', '.join(f'{count} {label}' for label, count in sorted(counts.items()))})" if counts else ""
    named = "" if spec.train.level == "slide" else f", {bags} bags"
    return f"{len(cohort)} slides of {patients} patients{named}{classes}, {spec.train.folds} folds"


def show_training(records: list, spec: Any, folder: Any, name: str) -> Any:
    """Train with a bar, and print the cross-validated figures; returns the model."""
    import time

    from jobs.training import left_out, train_model

    from .console import bar, note, say
    from .console import out as console

    started = time.monotonic()
    if without := left_out(records, spec, folder):
        named = ", ".join(without[:10]) + (" …" if len(without) > 10 else "")
        note(f"{len(without)} labelled slides failed earlier and are left out: {named}")
    for text in _cohort_notes(records, spec):
        note(text)
    total = spec.train.folds * spec.train.repeats * spec.train.epochs
    with bar("train", total) as show:

        def step(fold: int, epoch: int, loss: float, validation: float | None) -> None:
            note = f"fold {fold + 1}, loss {loss:.3f}" + (
                f", validation {validation:.3f}" if validation is not None else ""
            )
            show(fold * spec.train.epochs + epoch + 1, note)

        model = train_model(records, spec, folder, name, step)
    figures = model.figures
    bags = "" if spec.train.level == "patient" else f"{len(model.cohort)} {spec.train.level}s, "
    console.print(
        f"[bold]{'Training':<13}[/] {bags}{figures['patients']} patients, "
        f"{len(model.weights)} networks  [dim]{time.monotonic() - started:.1f} s[/]"
    )
    say(f"{figures['headline']['name']} {show_estimate(figures['headline'])}, of bags no network had seen")
    for place, fold in enumerate(model.folds):
        if "search" in fold:
            chosen = ", ".join(f"{key} {value}" for key, value in fold["search"]["chosen"].items())
            say(f"network {place}: {chosen}", style="dim")
    for text in [*figures["notes"], *model.metrics["notes"]]:
        note(text)
    return model


def _cohort_notes(records: list, spec: Any) -> list[str]:
    """What the manifest lacks, and what follows for the figures."""
    from jobs.bags import with_truth

    task, notes = spec.train.task, []
    if without := len(records) - len(with_truth(records, task, spec.train.level)):
        column = f"{task.time} and {task.event}" if task.is_survival else task.target
        notes.append(f"{without} of {len(records)} slides are left out: nothing in {column}")
    if len(records) > 1 and all(record.patient_id == record.slide_id for record in records):
        notes.append(
            "the manifest names no patients, so each slide is taken as one of its own; two slides of a patient may lie "
            "in different folds, and the figures are then too good: add a patient_id column"
        )
    return notes


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
