"""wsi convert: a run's tiles as the files of other tools."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    run: Annotated[Path, typer.Argument(help="Run folder whose slides are tiled", metavar="RUN")],
    to: Annotated[str, typer.Option("--to", help="trident or clam: their folders of HDF5 coordinates", metavar="KIND")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write", metavar="FOLDER")],
) -> None:
    """Write the tile coordinates of a run for TRIDENT or CLAM. The other way: wsi tile --coords FOLDER."""
    from jobs.convert import export_coords
    from jobs.folder import RunFolder

    from .console import say

    written, places, failed = export_coords(RunFolder(run), to, out)
    if failed:
        say(f"{len(failed)} slides failed when they were tiled last and are left out: {', '.join(failed)}")
    say(f"{written} slides: {', '.join(map(str, places))}")
