"""Arguments and options that several commands share, and how they become settings."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jobs.manifest import SlideRecord

TILING, COMPUTING, MODEL = "Tiling", "Computing", "Model"

Source = Annotated[
    str, typer.Argument(help="A slide, a folder of slides, or a manifest CSV (slide_id,path,…); a path or URL")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder: results go there, and a re-run continues there")]
Config = Annotated[str | None, typer.Option("--config", "-c", help="Recipe: a YAML file, or the name of a shipped one")]
SlideMpp = Annotated[
    float | None, typer.Option(help="µm per level-0 pixel of slides whose file does not say it", rich_help_panel=TILING)
]
TilePx = Annotated[
    int | None, typer.Option(help="Side of a patch in pixels; by default the backbone's", rich_help_panel=TILING)
]
TileMpp = Annotated[
    str | None,
    typer.Option(
        help="µm per patch pixel, such as 0.5; 20x is taken as 0.5; by default the backbone's", rich_help_panel=TILING
    ),
]
StridePx = Annotated[
    int | None,
    typer.Option(help="Distance between tiles in patch pixels; by default no overlap", rich_help_panel=TILING),
]
MinTissue = Annotated[
    float | None,
    typer.Option(help="Share of a tile that must be tissue, 0 to 1; by default 0.25", rich_help_panel=TILING),
]
Patches = Annotated[bool, typer.Option("--patches", help="Store the tiles' pixels too (Zarr)", rich_help_panel=TILING)]
BackboneName = Annotated[
    str | None,
    typer.Option("--backbone", "-b", help="Backbone; by default efficientnet-lite0", rich_help_panel=COMPUTING),
]
Weights = Annotated[
    Path | None, typer.Option(help="File or folder with the backbone's weights", rich_help_panel=COMPUTING)
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps", rich_help_panel=COMPUTING)]
Batch = Annotated[
    int | None, typer.Option(help="Patches a step; by default suits the device", rich_help_panel=COMPUTING)
]
ExecutorName = Annotated[str | None, typer.Option("--executor", help="processes or serial", rich_help_panel=COMPUTING)]
Workers = Annotated[int | None, typer.Option(help="Processes; by default one a core", rich_help_panel=COMPUTING)]
ModelDir = Annotated[
    Path,
    typer.Option("--model", "-m", help="A trained model's folder, such as run/models/tumor", rich_help_panel=MODEL),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what it would cost; do nothing")]


def gather(config: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Settings of the recipe, with every option that was given over them. Keys are dotted: tile.tile_px."""
    from jobs.config import load_recipe, set_option

    settings = load_recipe(config) if config else {}
    for key, value in options.items():
        set_option(settings, key, str(value) if isinstance(value, Path) else value)
    return settings


def parse_mpp(text: str | None) -> float | None:
    """0.5 → 0.5; 20x → 0.5: the scale that scanners call 20x is 10 / 20 µm per pixel."""
    from wsi.errors import SpecError

    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([xX]?)\s*", text)
    if match is None or float(match[1]) == 0:
        raise SpecError(
            "--tile-mpp", f"{text!r} is no scale", "give µm per pixel such as 0.5, or a magnification such as 20x"
        )
    return 10 / float(match[1]) if match[2] else float(match[1])


def read_records(source: str, slide_mpp: float | None) -> "list[SlideRecord]":
    """The slides of `source`; `slide_mpp` is for those whose file and row do not say their pixel size."""
    from dataclasses import replace

    from jobs.manifest import read_source
    from wsi.errors import SpecError

    if slide_mpp is not None and not 0.05 <= slide_mpp <= 20:
        raise SpecError(
            "--slide-mpp", f"{slide_mpp} is no pixel size", "give µm per pixel from 0.05 to 20, such as 0.25"
        )
    return [replace(record, fallback_mpp=slide_mpp) for record in read_source(source)]
