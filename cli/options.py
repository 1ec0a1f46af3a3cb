"""Arguments and options that commands share, and how they become settings.

A command says which groups of options it takes; `with_settings` adds them to its signature, which is where typer reads
them, and hands the command one dictionary of settings: the recipe's, with every option that was given over them.
"""

import inspect
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from jobs.manifest import SlideRecord

TILING, LOOKING, COMPUTING, MODEL = "Tiling", "Tissue, quality and regions", "Computing", "Model"

Source = Annotated[
    str,
    typer.Argument(
        help="A slide, a folder of slides, a manifest CSV (slide_id,path,…), or a URL of one", metavar="SOURCE"
    ),
]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", help="Run folder: results go there, and a re-run continues there", metavar="FOLDER"),
]
SlideMpp = Annotated[
    float | None,
    typer.Option(
        help="µm per level-0 pixel of slides whose file does not say it", rich_help_panel=TILING, metavar="MPP"
    ),
]
ModelDir = Annotated[
    Path,
    typer.Option(
        "--model",
        "-m",
        help="A trained model's folder, such as run/models/tumor",
        rich_help_panel=MODEL,
        metavar="FOLDER",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done and what it would cost; do nothing", metavar="")
]


class Setting(NamedTuple):
    """An option and the settings it becomes.

    kind      its type and typer.Option
    convert   given value → dotted key → value
    """

    kind: Any
    convert: Callable[[Any], dict[str, Any]]


def parse_mpp(text: str) -> float:
    """0.5 → 0.5; 20x → 0.5: the scale that scanners call 20x is 10 / 20 µm per pixel."""
    from wsi.errors import SpecError

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([xX]?)\s*", text)
    if match is None or float(match[1]) == 0:
        raise SpecError(
            "--tile-mpp", f"{text!r} is no scale", "give µm per pixel such as 0.5, or a magnification such as 20x"
        )
    return 10 / float(match[1]) if match[2] else float(match[1])


def parse_memory(text: str) -> int:
    """Mebibytes: 1GiB → 1024, 512M → 512, 800 → 800."""
    from wsi.errors import SpecError

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([mMgG]?)(?:i?[bB])?\s*", text)
    if match is None:
        raise SpecError("--memory", f"{text!r} is no amount of memory", "give such as 1GiB or 512MiB")
    return round(float(match[1]) * (1024 if match[2] in ("g", "G") else 1))


def parse_tissue(text: str) -> dict[str, Any]:
    """A method by name, or the mask or folder of masks to use."""
    from tiling.spec import TISSUE_METHODS
    from wsi.errors import SpecError

    if text in TISSUE_METHODS and text != "mask":
        return {"tile.tissue.method": text}
    if not Path(text).exists():
        methods = ", ".join(method for method in TISSUE_METHODS if method != "mask")
        raise SpecError("--tissue", f"{text!r} is neither a method nor a file", f"give {methods}, a mask or a folder")
    return {"tile.tissue.method": "mask", "tile.tissue.mask": text}


def parse_pairs(texts: list[str]) -> dict[str, Any]:
    """`tile.quality.blur_mpp=1` → that key; values are read as YAML, as in a recipe."""
    import yaml

    from wsi.errors import SpecError

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SpecError("--set", f"{text!r} is no setting", "give KEY=VALUE, such as tile.tissue.mpp=4")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SpecError("--set", f"{value!r} is no value in YAML", "put it in quotes") from error
    return found


def option(help_text: str, *names: str, panel: str | None = None, takes: str = "") -> Any:
    """An option whose value the help page calls `takes`; a switch takes none."""
    return typer.Option(*names, help=help_text, rich_help_panel=panel, metavar=takes)


def at(key: str, convert: Callable[[Any], Any] = lambda value: value) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {key: str(convert(value)) if isinstance(value, Path) else convert(value)}


def words(value: list[str]) -> list[str]:
    return [word.strip() for text in value for word in text.split(",")]


def numbers(value: list[str]) -> list[float]:
    """Numbers given one by one or divided by commas, lowest first."""
    from wsi.errors import SpecError

    try:
        return sorted(float(word) for word in words(value))
    except ValueError:
        raise SpecError(", ".join(value), "is not a list of numbers", "give such as 0.5 or 0.3,0.6") from None


_T, _L, _C = TILING, LOOKING, COMPUTING
TILE = {
    "tile_px": Setting(
        Annotated[int | None, option("Side of a patch in pixels; by default the backbone's", panel=_T, takes="N")],
        at("tile.tile_px"),
    ),
    "tile_mpp": Setting(
        Annotated[str | None, option("µm per patch pixel, or 20x; by default the backbone's", panel=_T, takes="MPP")],
        at("tile.mpp", parse_mpp),
    ),
    "stride_px": Setting(
        Annotated[
            int | None, option("Distance between tiles in patch pixels; by default no overlap", panel=_T, takes="N")
        ],
        at("tile.stride_px"),
    ),
    "max_tiles": Setting(
        Annotated[int | None, option("At most so many tiles a slide, drawn by --seed", panel=_T, takes="N")],
        at("tile.max_tiles"),
    ),
    "seed": Setting(Annotated[int | None, option("Of that draw", panel=_T, takes="N")], at("tile.seed")),
    "coords": Setting(
        Annotated[Path | None, option("Take the tiles of CLAM, TRIDENT or another run", panel=_T, takes="FOLDER")],
        at("coords"),
    ),
    "cheap_levels": Setting(
        Annotated[
            bool | None,
            option("Read JPEG at 1/2, 1/4, 1/8: faster; by default on", "--cheap-levels/--no-cheap-levels", panel=_T),
        ],
        at("tile.cheap_levels"),
    ),
    "icc": Setting(
        Annotated[str | None, option("srgb: apply the slides' ICC profile", panel=_T, takes="KIND")], at("tile.icc")
    ),
    "channels": Setting(
        Annotated[str | None, option("Show a fluorescence slide so: DAPI=0000FF:100-4000", panel=_T, takes="TEXT")],
        at("tile.channels"),
    ),
    "patches": Setting(
        Annotated[str | None, option("Store the pixels too: raw, jpeg or native", panel=_T, takes="KIND")],
        at("patches"),
    ),
    "export": Setting(
        Annotated[str | None, option("The stored patches also as files: png, jpg or tar", panel=_T, takes="KIND")],
        at("export"),
    ),
    "min_tissue": Setting(
        Annotated[
            float | None, option("Share of a tile that must be tissue; by default 0.25", panel=_L, takes="SHARE")
        ],
        at("tile.min_tissue"),
    ),
    "tissue": Setting(
        Annotated[
            str | None,
            option(
                "otsu, hsv, texture, fluorescence, learned, none; or a mask, or a folder of masks",
                panel=_L,
                takes="METHOD",
            ),
        ],
        parse_tissue,
    ),
    "tissue_weights": Setting(
        Annotated[Path | None, option("Weights of the learned segmenter", panel=_L, takes="FILE")],
        at("tile.tissue.weights"),
    ),
    "pen": Setting(
        Annotated[bool | None, option("Take pen marks out of the tissue; by default on", "--pen/--no-pen", panel=_L)],
        at("tile.tissue.pen"),
    ),
    "qc": Setting(
        Annotated[bool | None, option("Measure blur, folds, pen and more; by default on", "--qc/--no-qc", panel=_L)],
        at("tile.quality.measure"),
    ),
    "drop": Setting(
        Annotated[
            list[str] | None, option("Leave out tiles with blur, fold, pen, dark, bubble", panel=_L, takes="FLAG")
        ],
        at("tile.quality.exclude", words),
    ),
    "include": Setting(
        Annotated[Path | None, option("Only tiles in these regions: GeoJSON, XML or a folder", panel=_L, takes="FILE")],
        at("tile.regions.include"),
    ),
    "include_class": Setting(
        Annotated[list[str] | None, option("Of those, only this class", panel=_L, takes="NAME")],
        at("tile.regions.include_classes", list),
    ),
    "exclude": Setting(
        Annotated[Path | None, option("No tiles in these regions", panel=_L, takes="FILE")],
        at("tile.regions.exclude"),
    ),
    "exclude_class": Setting(
        Annotated[list[str] | None, option("Of those, only this class", panel=_L, takes="NAME")],
        at("tile.regions.exclude_classes", list),
    ),
    "memory": Setting(
        Annotated[str | None, option("Memory to read one slide in; by default 1GiB", panel=_C, takes="SIZE")],
        at("jobs.read_mib", parse_memory),
    ),
    "timeout": Setting(
        Annotated[
            float | None, option("Seconds without progress that fail a slide; by default 120", panel=_C, takes="S")
        ],
        at("jobs.deadline_s"),
    ),
}
EXECUTOR = {
    "executor": Setting(
        Annotated[str | None, option("processes (by default), serial or dask", panel=_C, takes="KIND")],
        at("jobs.executor"),
    ),
    "scheduler": Setting(
        Annotated[str | None, option("Work on this Dask cluster: tcp://HOST:PORT", panel=_C, takes="ADDRESS")],
        lambda value: {"jobs.scheduler": value, "jobs.executor": "dask"},
    ),
    "cluster": Setting(
        Annotated[
            str | None, option("Start a cluster: cluster-slurm or another recipe, or your YAML", panel=_C, takes="FILE")
        ],
        lambda value: {"jobs.cluster": value, "jobs.executor": "dask"},
    ),
    "max_failures": Setting(
        Annotated[int | None, option("End the run when more slides have failed", panel=_C, takes="N")],
        at("jobs.max_failures"),
    ),
    "retry_failed": Setting(
        Annotated[
            bool | None,
            option("Also try slides again that crashed their reader before", "--retry-failed", panel=_C),
        ],
        at("jobs.retry_failed"),
    ),
    "stage_to": Setting(
        Annotated[Path | None, option("Copy slides to this local disk ahead of reading", panel=_C, takes="FOLDER")],
        at("jobs.stage_to"),
    ),
    "metrics": Setting(
        Annotated[Path | None, option("Keep this file up to date with OpenMetrics figures", panel=_C, takes="FILE")],
        at("jobs.metrics"),
    ),
}
WORKERS = {
    **EXECUTOR,
    "workers": Setting(
        Annotated[int | None, option("Processes; by default one a core", panel=_C, takes="N")], at("jobs.workers")
    ),
}
_RECIPE = {
    "config": Annotated[
        str | None,
        typer.Option("--config", "-c", help="Recipe: a YAML file, or the name of a shipped one", metavar="FILE"),
    ],
    "set_": Annotated[
        list[str] | None,
        typer.Option("--set", help="Any key of a recipe, such as tile.tissue.mpp=4", metavar="KEY=VALUE"),
    ],
}


def with_settings(*groups: dict[str, Setting]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these groups, --config and --set; they reach it as its argument `settings`."""
    options = {name: setting for group in groups for name, setting in group.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [item for item in inspect.signature(command).parameters.values() if item.name != "settings"]
        kinds = {**_RECIPE, **{name: setting.kind for name, setting in options.items()}}
        kind = inspect.Parameter.KEYWORD_ONLY
        added = [inspect.Parameter(name, kind, default=None, annotation=kinds[name]) for name in kinds]

        @wraps(command)
        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in kinds}
            command(**values, settings=gather(given.pop("config"), given.pop("set_"), options, given))

        parameters = [item.replace(kind=kind) for item in own] + added
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        return run

    return decorate


def gather(
    config: str | None, pairs: list[str] | None, options: dict[str, Setting], given: dict[str, Any]
) -> dict[str, Any]:
    """Settings of the recipe, then of --set, then of every option that was given."""
    from jobs.config import load_recipe, set_option

    settings = load_recipe(config) if config else {}
    found = parse_pairs(pairs or [])
    for name, value in given.items():
        if value is not None and value != []:
            found |= options[name].convert(value)
    for key, value in found.items():
        set_option(settings, key, value)
    return settings


def read_records(source: str, slide_mpp: float | None, out: Path | None = None) -> "list[SlideRecord]":
    """The slides of `source`; `slide_mpp` is for those whose file and row do not say their pixel size. A table without
    paths may name slides that the run folder `out` knows."""
    from dataclasses import replace

    from jobs.folder import RunFolder
    from jobs.manifest import read_source
    from jobs.slide_table import read_records as read_known
    from wsi.errors import SpecError

    if slide_mpp is not None and not 0.05 <= slide_mpp <= 20:
        raise SpecError(
            "--slide-mpp", f"{slide_mpp} is no pixel size", "give µm per pixel from 0.05 to 20, such as 0.25"
        )
    known = read_known(RunFolder(out)) if out is not None and str(source).lower().endswith(".csv") else None
    return [replace(record, fallback_mpp=slide_mpp) for record in read_source(source, known)]
