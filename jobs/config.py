"""Recipes: YAML files whose keys are a spec's fields, with command-line flags over them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from embedding.slide_encoders.spec import EncodeSpec
from embedding.spec import EmbedSpec
from mil.finetune.spec import FinetuneSpec
from mil.spec import TrainSpec
from tiling.spec import TileSpec
from wsi.channels import Channels
from wsi.errors import SpecError

from .executors import ExecSpec

SCORES = ("prediction", "attention", "gradient", "occlusion")
FORMATS = ("geojson", "regions", "contours", "png", "ome-tiff", "ome-zarr")


@dataclass(frozen=True, slots=True)
class HeatmapSpec:
    """What is drawn.

    score    prediction: what the model says of each tile alone; attention: how much it looked at the tile; gradient:
             gradient × input; occlusion: what the slide's output loses without the tile
    tiles    that many tiles of the highest and of the lowest score, as pictures
    max_px   longer side of the PNG overlay
    formats  files that are made, of FORMATS
    display  what colours are spread over. cohort: where the tiles of the model's training cohort lie, so that a colour
             means the same on every slide; definition: the whole range that the score can have; or "LOW,HIGH"
    class_name  whose output is drawn; None for that of the positive class, or of more than two the predicted one
    min_score, top_k, max_objects  of the format geojson: see heatmaps.geojson
    levels, min_area_um2, tolerance_um  of the formats regions and contours: see heatmaps.contours.OutlineSpec
    """

    score: str = "prediction"
    tiles: int = 0
    max_px: int = 1600
    formats: tuple[str, ...] = ("geojson", "png")
    display: str = "cohort"
    class_name: str | None = None
    min_score: float | None = None
    top_k: int | None = None
    max_objects: int = 250_000
    levels: tuple[float, ...] = ()
    min_area_um2: float = 0.0
    tolerance_um: float | None = None

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise SpecError("heatmap.score", f"{self.score!r} is unknown", f"choose {', '.join(SCORES)}")
        if not 0 <= self.tiles <= 100:
            raise SpecError("heatmap.tiles", f"{self.tiles} is out of range", "give 0 to 100")
        if not 100 <= self.max_px <= 20_000:
            raise SpecError("heatmap.max_px", f"{self.max_px} is out of range", "give 100 to 20000")
        for name in self.formats:
            if name not in FORMATS:
                raise SpecError("heatmap.formats", f"{name!r} is unknown", f"choose of {', '.join(FORMATS)}")
        if self.display not in ("cohort", "definition"):
            self.given_range()

    def given_range(self) -> tuple[float, float]:
        """(low, high) of a display range in numbers. Raises SpecError for anything else."""
        parts = self.display.split(",")
        try:
            low, high = (float(part) for part in parts)
        except ValueError:
            low, high = math.nan, math.nan
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            remedy = "give cohort, definition, or two numbers such as 0.2,0.8"
            raise SpecError("heatmap.display", f"{self.display!r} is no range", remedy)
        return low, high


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything that a run is asked for; the sections of a recipe are its fields.

    patches   the tiles' pixels in the store: none; raw; jpeg, a fifth of the bytes; native: the slide's own JPEG tiles,
              copied, where the grid is theirs
    export    the stored patches as files, too: png, jpg or tar, None for no files
    coords    take the tiles of another tool (a folder of CLAM's or TRIDENT's HDF5 files, or one slide's file), or,
              about the same centres at this run's scale, those of another run folder
    model     folder of the model that predicts, None without one
    features  names of the run's embeddings to train on, of several backbones joined; () for those of these settings
    """

    tile: TileSpec = field(default_factory=TileSpec)
    patches: str = "none"
    export: str | None = None
    coords: str | None = None
    embed: EmbedSpec = field(default_factory=EmbedSpec)
    encode: EncodeSpec = field(default_factory=EncodeSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    finetune: FinetuneSpec = field(default_factory=FinetuneSpec)
    heatmap: HeatmapSpec = field(default_factory=HeatmapSpec)
    jobs: ExecSpec = field(default_factory=ExecSpec)
    model: str | None = None
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = (
            ("patches", self.patches, ("none", "raw", "jpeg", "native")),
            ("export", self.export, (None, "png", "jpg", "tar")),
        )
        for name, value, known in checks:
            if value not in known:
                raise SpecError(
                    name, f"{value!r} is unknown", f"choose {', '.join(str(word) for word in known if word)}"
                )
        if self.export is not None and self.patches == "none":
            raise SpecError("export", "no patches are stored to export", "add --patches raw, jpeg or native")
        tile, usual = self.tile, TileSpec()
        chosen = tile.regions.include or tile.regions.exclude or tile.max_tiles or tile.quality.exclude
        placed = tile.min_tissue != usual.min_tissue or tile.stride != tile.tile_px
        if self.coords is not None and (chosen or placed):
            raise SpecError(
                "coords",
                "tiles that are given are all kept where they are, so none can be chosen",
                "leave out include, exclude, max_tiles, drop, min_tissue and stride_px, or coords",
            )


Settings = dict[str, Any]
# how a model's settings are called on the command line, where it is not by their name
_OPTIONS = {"tile_px": "--tile-px", "mpp": "--tile-mpp", "method": "--stain", "jitter": "--stain-jitter",
            "seed": "embed.stain.seed"}  # fmt: skip


def load_recipe(path: Path | str) -> Settings:
    """The settings in a recipe: a file, or the name of one that ships with the package.

    Raises SpecError for a missing file, for bad YAML, and for a key that no spec has, with the nearest that one has.
    """
    shipped = files("configs") / f"{path}.yaml"
    try:
        text = shipped.read_text(encoding="utf-8") if shipped.is_file() else Path(path).read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
    except UnicodeDecodeError as error:
        raise SpecError(path, "it is not UTF-8 text", "save it as UTF-8") from error
    except OSError as error:
        names = ", ".join(
            sorted(entry.name[:-5] for entry in files("configs").iterdir() if entry.name.endswith(".yaml"))
        )
        raise SpecError(path, "there is no such recipe", f"give a YAML file or one of {names}") from error
    except yaml.YAMLError as error:
        raise SpecError(path, f"it is not valid YAML ({_first_line(error)})", "see the recipes in configs/") from error
    if not isinstance(content, dict):
        raise SpecError(path, "it is not a table of settings", "see the recipes in configs/")
    check_keys(content, RunSpec, str(path))
    return content


def _first_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark is not None else ""
    return where + str(getattr(error, "problem", None) or error).splitlines()[0]


def check_keys(settings: Mapping[str, Any], spec: type, where: str) -> None:
    """Raise SpecError for the first key that `spec` has no field for, naming the nearest."""
    hints = get_type_hints(spec)
    for key, value in settings.items():
        if key not in hints:
            near = get_close_matches(str(key), hints, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(hints)}"
            raise SpecError(where, f"the key {key!r} is unknown", hint)
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise SpecError(where, f"{key!r} is a section of settings, not {value!r}", "indent its keys below it")
            check_keys(value, hints[key], f"{where}: {key}")


def set_option(settings: Settings, key: str, value: Any) -> None:
    """Put a dotted key such as tile.tissue.mpp into nested settings. Raises SpecError for a key that no spec has."""
    *sections, last = key.split(".")
    nested: Any = value
    for name in (last, *reversed(sections)):
        nested = {name: nested}
    check_keys(nested, RunSpec, key)
    for section in sections:
        settings = settings.setdefault(section, {})
    settings[last] = value


def resolve(settings: Settings, contract: Mapping[str, Any] | None = None) -> RunSpec:
    """Settings → a checked RunSpec.

    Tile size and scale that nobody named are the backbone's own. With a model's `contract` they are the model's, and a
    setting that says otherwise is refused, since its features would mean something else.
    """
    settings = {key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()}
    tile, embed = settings.setdefault("tile", {}), settings.setdefault("embed", {})
    if isinstance(tile.get("channels"), str):
        tile["channels"] = str(Channels.parse(tile["channels"]))  # one choice has one text: it is compared as text
    if contract is not None and "origin" not in contract:  # another tool's embeddings say less than settings hold
        _follow(contract, tile, embed)
        if "quality" in str(contract.get("pixels")):  # patches that were kept so, not tile images that were imported
            settings.setdefault("patches", "jpeg")
    backbone = _build(EmbedSpec, embed).entry()
    tile.setdefault("tile_px", backbone.tile_px)
    tile.setdefault("mpp", backbone.mpp[0])
    return _build(RunSpec, settings)


def _follow(contract: Mapping[str, Any], tile: Settings, embed: Settings) -> None:
    """Give the settings what a model's contract says, where nobody said anything; refuse what says otherwise."""
    stain = embed["stain"] = dict(embed.get("stain") or {})
    normalised = contract.get("stain") or {"method": "none", "jitter": 0.0}
    if len(str(normalised.get("target", ""))) == 64 and stain.get("target") is None:
        raise SpecError(
            "--stain-target",
            f"the model's embeddings were normalised to a picture, of sha256 {normalised['target'][:12]}…",
            "name it; it may lie anywhere",
        )
    fixed = (
        *((tile, key, contract.get(key)) for key in ("tile_px", "mpp", "icc", "channels") if key in contract),
        *((embed, key, contract.get(key)) for key in ("backbone", "precision", "dtype", "views") if key in contract),
        *([(embed, "variant", contract["pooling"])] if "pooling" in contract else []),
        (embed, "engine", contract.get("engine", "torch")),
        *((stain, key, normalised[key]) for key in ("method", "jitter", "seed") if key in normalised),
    )  # a model of an earlier version says less; that it does not fit is said where contracts meet
    for section, key, value in fixed:
        if section.setdefault(key, value) != value:
            problem = f"{section[key]} was asked for, the model was trained on {value}"
            raise SpecError(_OPTIONS.get(key, f"--{key}"), problem, "leave it out, or use a model trained so")


def as_settings(spec: RunSpec) -> Settings:
    """A RunSpec as plain settings, for run.json."""
    return asdict(spec)


def _build(spec: type, settings: Mapping[str, Any]) -> Any:
    from pydantic import TypeAdapter, ValidationError

    check_keys(settings, spec, "settings")
    hints = get_type_hints(spec)
    values = {key: _build(hints[key], value) if is_dataclass(hints[key]) else value for key, value in settings.items()}
    for item in fields(spec):
        if item.name in values and not is_dataclass(hints[item.name]):
            try:
                values[item.name] = TypeAdapter(hints[item.name]).validate_python(values[item.name])
            except ValidationError as error:
                reason = error.errors()[0]["msg"].lower()
                raise SpecError(
                    item.name, f"{values[item.name]!r} does not fit ({reason})", "see `wsi run --help`"
                ) from None
    return spec(**values)
