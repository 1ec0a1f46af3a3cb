"""Classes by description, without training: prompts → scores of tiles and slides."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import MODEL, WORKERS, DryRun, Out, Setting, Source, at, option, read_records, with_settings
from .options_embed import BACKBONES, VECTORS

_EMBEDDINGS = {
    "backbone": Setting(
        Annotated[
            str | None, option("By default that of the embeddings", "--backbone", "-b", panel=BACKBONES, takes="NAME")
        ],
        at("embed.backbone"),
    ),
    **{key: VECTORS[key] for key in ("weights", "offline")},
}


@with_settings(_EMBEDDINGS, WORKERS)
def zero_shot(
    source: Source,
    out: Out,
    prompts: Annotated[
        Path,
        typer.Option("--prompts", help="YAML: classes and their names", rich_help_panel=MODEL, metavar="FILE"),
    ],
    settings: dict[str, Any],
    name: Annotated[
        str | None,
        typer.Option(
            "--name", "-n", help="Of the results; by default the file's", rich_help_panel=MODEL, metavar="NAME"
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option(help="Tiles nearest to a class that speak for the slide", rich_help_panel=MODEL, metavar="N")
    ] = 50,
    features: Annotated[
        str | None,
        typer.Option(help="Which of run/embeddings, where several fit", rich_help_panel=MODEL, metavar="NAME"),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Score every embedded slide by prompts: predictions/<name>.csv and heatmaps. Needs embeddings that were made
    with conch, biomedclip or plip, --variant projected."""
    from embedding.zero_shot import read_prompts
    from jobs.config import as_settings, resolve
    from jobs.folder import RunFolder, command_line, run_facts, write_run
    from jobs.pipeline import Job
    from jobs.zero_shot import describe, projected_features, write_scores, zero_shot_slide

    from .console import print_failures, run_shown, say
    from .train import check_name

    records, folder, asked = read_records(source, None), RunFolder(out), read_prompts(prompts)
    name = name or prompts.name.partition(".")[0]
    check_name(name)
    chosen, contract = projected_features(settings, features, folder)
    spec = resolve(settings, contract)
    if dry_run:
        say(f"{len(records)} slides would be scored for {', '.join(asked.names)} on {chosen}; nothing was done.")
        raise typer.Exit(0)
    folder.prepare()
    described = describe(name, asked, top_k, spec.embed, contract, folder)
    job = Job(records, resolve({**settings, "model": str(described)}, contract), folder)
    job.recall("tile", "embed", contract=chosen)
    facts = run_facts(command_line(), as_settings(job.spec))
    write_run(folder, facts, ended=False)
    run_shown(job, zero_shot_slide)
    write_scores(records, described, folder, {key: receipt.problem for key, receipt in job.failed().items()})
    say(f"scores: {folder.predictions(name)}")
    write_run(folder, facts)
    raise typer.Exit(print_failures(job))
