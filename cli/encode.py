"""wsi encode: one vector per slide."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import COMPUTING, EXECUTOR, DryRun, Out, Setting, Source, at, option, with_settings
from .stages import settings_of, start

if TYPE_CHECKING:
    from jobs.pipeline import Job

ENCODERS = "Slide encoder"
ENCODE = {
    "encoder": Setting(
        Annotated[
            str | None,
            option("mean, titan, prism, gigapath-slide, chief-slide, madeleine, feather, feather-uni2; by default mean",
                   "--encoder", "-e", panel=ENCODERS, takes="NAME"),
        ],
        at("encode.encoder"),
    ),
    "backbone": Setting(
        Annotated[
            str | None,
            option("For mean: whose embeddings, where the run has several", "--backbone", "-b", panel=ENCODERS,
                   takes="NAME"),
        ],
        at("encode.backbone"),
    ),
    "features": Setting(
        Annotated[
            str | None,
            option("Which embeddings: a folder's name in RUN/embeddings; needed where several fit", panel=ENCODERS,
                   takes="NAME"),
        ],
        at("encode.features"),
    ),
    "weights": Setting(
        Annotated[Path | None, option("File or folder with its weights", panel=ENCODERS, takes="FILE")],
        at("encode.weights"),
    ),
    "own_weights": Setting(
        Annotated[bool | None, option("They are not those that the authors published, but your own",
                                      "--own-weights/--no-own-weights", panel=ENCODERS)],
        at("encode.own_weights"),
    ),
    "trust_remote_code": Setting(
        Annotated[bool | None, option("Let Python code that came with the weights run", "--trust-remote-code",
                                      panel=ENCODERS)],
        at("encode.trust_remote_code"),
    ),
    "offline": Setting(
        Annotated[bool | None, option("Make no network call", "--offline/--no-offline", panel=ENCODERS)],
        at("encode.offline"),
    ),
    "device": Setting(
        Annotated[str | None, option("auto, cpu, mps or cuda", panel=COMPUTING, takes="NAME")], at("encode.device")
    ),
    "precision": Setting(
        Annotated[str | None, option("auto, fp32, bf16 or fp16", panel=COMPUTING, takes="KIND")], at("encode.precision")
    ),
}  # fmt: skip


@with_settings(ENCODE, EXECUTOR)
def encode(source: Source, out: Out, settings: dict[str, Any], dry_run: DryRun = False) -> None:
    """Make one vector of every embedded slide with a slide encoder → slide_embeddings/<encoder>.npz."""
    from embedding.contract import contract_name
    from embedding.slide_encoders.contract import slide_contract_name
    from jobs.encode_stage import check_encoding, encode_slide, write_vectors
    from jobs.folder import command_line, run_facts, write_run

    from .console import err, print_failures, run_shown, say

    # no slide is read, so nothing needs the protection of another process, and one model is enough
    settings.setdefault("jobs", {}).setdefault("executor", "serial")
    job = start(source, out, settings)
    contract, notes = check_encoding(job.spec.encode, job.folder)
    for note in notes:
        err.print(f"{contract['encoder']}: {note}", markup=False)
    job.recall("tile", "embed", contract=contract_name(contract["tiles"]))
    if dry_run:
        _end_dry_run(job, contract_name(contract["tiles"]))
    job.folder.prepare()
    facts = run_facts(command_line(), settings_of(job))
    write_run(job.folder, facts, ended=False)
    run_shown(job, encode_slide)
    path, count = write_vectors(job.folder, slide_contract_name(contract))
    say(f"vectors: {path} ({count} slides x {contract['dim']})")
    write_run(job.folder, facts)
    raise typer.Exit(print_failures(job))


def _end_dry_run(job: "Job", embeddings: str) -> None:
    from jobs.stages import has_fitting

    from .console import say

    folder, failed = job.folder, job.failed()
    lacking = [
        record.slide_id
        for record in job.records
        if record.slide_id in failed
        or not has_fitting(folder.embeddings(embeddings, record.slide_id), folder, record.slide_id)
    ]
    for slide_id in lacking:
        say(f"{slide_id}: {failed[slide_id].problem if slide_id in failed else 'it has no embeddings that fit'}")
    ready = len(job.records) - len(lacking)
    say(f"{ready} slides to do from {embeddings}, {len(lacking)} not ready; nothing was done.")
    raise typer.Exit(1 if lacking else 0)
