"""wsi convert: a run's tiles and embeddings as the files of other tools, and theirs as a run's."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import parse_mpp

if TYPE_CHECKING:
    from embedding.interop import Known, Report

OUTWARD, INWARD = "To another tool", "Into a run (--to run)"
MOST_LINES = 24


def _told(text: str, *names: str, takes: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=INWARD, metavar=takes)


def convert(
    source: Annotated[
        Path, typer.Argument(help="Run folder; with --to run, the tool's files or tile images", metavar="SOURCE")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="trident, clam, stamp, atlaspatch, slide2vec, anndata, spatialdata; or run, to bring theirs in",
            metavar="KIND",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write", metavar="FOLDER")],
    contract: Annotated[
        str | None,
        typer.Option(
            help="Which embeddings: a folder's name in RUN/embeddings", rich_help_panel=OUTWARD, metavar="NAME"
        ),
    ] = None,
    backbone: Annotated[
        str | None, _told("What made the features, where the files do not say", "--backbone", "-b", takes="NAME")
    ] = None,
    tile_px: Annotated[int | None, _told("Side of a patch in pixels", takes="N")] = None,
    tile_mpp: Annotated[str | None, _told("µm per patch pixel, or 20x", takes="MPP")] = None,
    slide_mpp: Annotated[float | None, _told("µm per level-0 pixel of the slides", takes="MPP")] = None,
    coords: Annotated[
        Path | None, _told("Folder or file with the tiles' places, as CLAM's patches", takes="FOLDER")
    ] = None,
) -> None:
    """Write a run's tiles and embeddings for other tools, or take in their features, or folders of tile images.

    Coordinates alone are taken by: wsi tile --coords FOLDER.
    """
    from embedding.interop import Known

    told = Known(backbone, tile_px, parse_mpp(tile_mpp) if tile_mpp else None, slide_mpp, coords)
    _check(told, to, contract)
    raise typer.Exit(_bring_in(source, out, told) if to == "run" else _write(source, to, out, contract))


def _check(told: "Known", to: str, contract: str | None) -> None:
    from wsi.errors import SpecError

    for name, value, low, high in (
        ("--slide-mpp", told.slide_mpp, 0.05, 20),
        ("--tile-mpp", told.mpp, 0.05, 20),
        ("--tile-px", told.tile_px, 16, 8192),
    ):
        if value is not None and not low <= value <= high:
            raise SpecError(name, f"{value} is out of range", f"give {low} to {high}")
    if to != "run" and told != type(told)():
        raise SpecError("--to", f"nothing is brought in with --to {to}", "leave out what is said of the files")
    if to == "run" and contract is not None:
        raise SpecError("--contract", "it chooses what is written for another tool", "leave it out with --to run")


def _write(run: Path, to: str, out: Path, contract: str | None) -> int:
    from jobs.convert import export_run, write_report
    from jobs.folder import RunFolder

    from .console import say

    done = export_run(RunFolder(run), to, out, contract)
    if done.failed:
        say(f"{len(done.failed)} slides failed when they were tiled last and are left out: {', '.join(done.failed)}")
    if done.places:
        say(f"{done.tiled} slides: {', '.join(map(str, done.places))}")
    if done.contract is not None:
        say(f"{done.embedded} slides with features of {done.contract}: {out}")
        if done.without:
            say(f"{len(done.without)} tiled slides have none: {_some(done.without)}")
        _table(done.reports)
        say(f"report: {write_report(out, run, to, done.reports, {'contract': done.contract})}")
    return 0


def _bring_in(source: Path, out: Path, told: "Known") -> int:
    from jobs.convert import write_report
    from jobs.folder import RunFolder, command_line, run_facts, write_run
    from jobs.import_features import MANIFEST, feature_files, import_features
    from jobs.import_tiles import import_tiles
    from wsi.errors import StoreError

    from .console import err, say

    if not source.exists():
        raise StoreError(source, "there is no such file or folder", "name a tool's files, or a folder of tile images")
    folder = RunFolder(out)
    folder.prepare()
    facts, reports = run_facts(command_line(), {}), []
    if feature_files(source):
        done = import_features(source, folder, told)
        failed, reports = done.failed, done.reports
        for flavour, count in done.flavours.items():
            say(f"{flavour}: {count} slides")
        if done.coords:
            say(f"{len(done.coords)} files hold coordinates only and were left: wsi tile --coords takes them")
        say(f"embeddings: {', '.join(done.contracts)}; to train on them: wsi train … --features {done.contracts[0]}")
    else:
        tiles = import_tiles(source, folder, told)
        failed, reports = tiles.failed, tiles.reports
        say(f"tile images: {len(tiles.tiles)} slides, {sum(tiles.tiles.values()):,} tiles")
    _table(reports)
    for file, problem in failed.items():
        err.print(f"{file}: {problem}", markup=False)
    say(f"slides: {folder.root / MANIFEST}")
    say(f"report: {write_report(out, source, 'run', reports, {'failed': failed})}")
    write_run(folder, facts)
    return 1 if failed else 0


def _table(reports: "Sequence[Report]") -> None:
    """What became of each field, a line for all slides that it is true of."""
    from jobs.convert import summary

    from .console import say

    rows = summary(reports)
    for fate, name, count, why in rows[:MOST_LINES]:
        slides = "" if count == len(reports) else f" ({count} of {len(reports)} slides)"
        say(f"  {fate:<8} {name}{slides}{f': {why}' if why else ''}", style="yellow" if fate == "guessed" else None)
    if len(rows) > MOST_LINES:
        say(f"  … and {len(rows) - MOST_LINES} more in the report")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
