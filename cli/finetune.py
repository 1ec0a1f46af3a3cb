"""wsi finetune: adapt a backbone to labels of one's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import COMPUTING, DryRun, Setting, at, option, with_settings
from .options_embed import VECTORS

TUNING, LABELS = "Fine-tuning", "Labels and pixels"
_B = {name: VECTORS[name] for name in ("backbone", "variant", "weights", "own_weights", "offline")}


def _tune(kind: Any, text: str, key: str, takes: str = "N", panel: str = TUNING) -> Setting:
    return Setting(Annotated[kind, option(text, panel=panel, takes=takes)], at(f"finetune.{key}"))


FINETUNE = {
    "labels": _tune(str | None, "tiles (pictures in a table), regions or slides; by default tiles", "labels", "KIND",
                    LABELS),
    "method": _tune(str | None, "lora or last-blocks; by default lora", "method", "NAME"),
    "rank": _tune(int | None, "Of LoRA; by default 8", "rank"),
    "alpha": _tune(float | None, "Of LoRA: W + alpha / rank · BA; by default 16", "alpha", "X"),
    "blocks": _tune(int | None, "How many of the last blocks change; by default all for lora, else 2", "blocks"),
    "epochs": _tune(int | None, "At most; by default 10", "epochs"),
    "patience": _tune(int | None, "Epochs without a better validation loss that end it; by default 3", "patience"),
    "batch": _tune(int | None, "Tiles a step, or slides; by default 32", "batch"),
    "learning_rate": _tune(float | None, "The highest; by default 2e-4 for lora, 2e-5 for last-blocks",
                           "learning_rate", "RATE"),
    "folds": _tune(int | None, "One of so many parts of the patients is tested, another stops; by default 5", "folds"),
    "tiles": _tune(int | None, "Of a slide in each step, for --labels slides; by default 32", "tiles"),
    "pick": _tune(str | None, "Those tiles: sampled, or half of them the top ones by attention", "pick", "KIND"),
    "max_tiles": _tune(int | None, "Of a slide (and class) that are looked at; by default 512", "max_tiles"),
    "min_share": _tune(float | None, "Of a tile in a class's regions; by default 0.5", "min_share", "SHARE", LABELS),
    "jitter": _tune(float | None, "Change colours at random by up to this; by default 0.1", "jitter", "SHARE"),
    "seed": _tune(int | None, "Of split, draws and training", "seed"),
    "checkpointing": Setting(
        Annotated[bool | None, option("Less memory, a third more time: compute activations twice",
                                      "--checkpointing/--no-checkpointing", panel=COMPUTING)],
        at("finetune.checkpointing"),
    ),
    "precision": _tune(str | None, "auto, fp32 or bf16", "precision", "KIND", COMPUTING),
    "device": _tune(str | None, "auto, cpu, mps, cuda or cuda:1", "device", "NAME", COMPUTING),
}  # fmt: skip


@with_settings(FINETUNE, _B)
def finetune(
    source: Annotated[
        str,
        typer.Argument(
            help="A CSV of tile pictures (path,label,group[,split]); or slides, as for `wsi run`", metavar="SOURCE"
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the adapter; an interrupted run goes on", metavar="FOLDER")
    ],
    settings: dict[str, Any],
    images: Annotated[
        Path | None, option("Folder or zip that the tiles' paths are in", panel=LABELS, takes="PLACE")
    ] = None,
    run: Annotated[Path | None, option("Run folder with the slides' tiles", panel=LABELS, takes="FOLDER")] = None,
    regions: Annotated[
        Path | None, option("GeoJSON or XML, or a folder with one a slide", panel=LABELS, takes="FILE")
    ] = None,
    classes: Annotated[
        list[str] | None, option("Only this class, or label; may be repeated", "--class", panel=LABELS, takes="NAME")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune a backbone with LoRA or by its last blocks → an adapter for `wsi embed --adapter`.

    Patients are never parted: the frozen and the tuned backbone are compared on patients that were not trained on.
    """
    from jobs.config import resolve
    from jobs.finetune import Asked, finetune_backbone, plan_finetuning
    from mil.finetune import Watcher

    from .console import bar, say

    spec = resolve(settings)
    asked = Asked(source, out, images, run, regions, tuple(classes or ()))
    if dry_run:
        planned = plan_finetuning(asked, spec)
        for name, text in planned.parts.items():
            say(f"{name}: {text}")
        say(planned.memory.in_words())
        if planned.pixel_bytes:
            say(f"{planned.pixel_bytes / 1e6:,.0f} MB of pixels would be read from the slides, and removed at the end")
        say("nothing was done.")
        raise typer.Exit(0)
    with bar("finetune", 100) as show:  # of each of its steps: reading, frozen embeddings, epochs, tuned embeddings
        watcher = Watcher(lambda done, total, note: show(100 * done // max(1, total), f"% {note}"), say)
        facts = finetune_backbone(asked, spec, watcher)
    show_figures(facts)
    say(f"adapter: {out}")
    say(f"embed with it: wsi embed SLIDES -o RUN --backbone {facts['backbone']} --adapter {out}")


def show_figures(facts: Mapping[str, Any]) -> None:
    """Frozen against tuned, on the test patients, with what to think of it."""
    from .console import say

    say(f"\nOn patients that were not trained on ({facts['parts']['test']}), 95 % intervals over patients:")
    say(f"  {'':36}{'balanced accuracy':24}AUROC")
    for row in facts["figures"]:
        say(f"  {row['name']:36}{_cell(row['balanced_accuracy']):24}{_cell(row['auroc'])}")
    gain = facts["gain"]
    say(f"  {'gain of the tuned head':36}{_cell(gain['balanced_accuracy'], '+'):24}"
        f"{_cell(gain['auroc'], '+')}")  # fmt: skip
    say(f"The best of {facts['epochs']} epochs was {facts['best_epoch']}; peak memory "
        f"{facts['peak_bytes'] / 2**30:.1f} GiB.", style="dim")  # fmt: skip
    say(facts["verdict"])


def _cell(estimate: Mapping[str, Any], sign: str = "") -> str:
    if estimate["value"] is None:
        return "not known"
    if estimate["low"] is None:
        return f"{estimate['value']:{sign}.3f}"
    return f"{estimate['value']:{sign}.3f} ({estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f})"
