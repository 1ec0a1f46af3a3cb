"""Which of a run's embeddings a command is about: they are known by their contracts, so no weights are needed."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from embedding.contract import differing, flatten
from wsi.errors import StoreError

from .config import Settings
from .folder import RunFolder

# a setting → what the contract calls it
_EMBED = {"backbone": "backbone", "variant": "pooling", "precision": "precision", "dtype": "dtype", "views": "views"}
_TILE = ("tile_px", "mpp", "icc", "channels")
_COLUMNS = {
    "variant": "pooling", "tile px": "tile_px", "µm/px": "mpp", "precision": "precision", "dtype": "dtype",
    "views": "views", "stain": "stain.method", "jitter": "stain.jitter", "icc": "icc", "channels": "channels",
    "engine": "engine", "pixels": "pixels", "weights": "weights_sha256", "adapter": "adapter",
}  # fmt: skip
USUAL = ("variant", "tile px", "µm/px", "precision", "dtype", "views", "stain")
_MOST = 4  # names in a line


def contracts_in(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Name of the folder → contract, of all finished embeddings in the run."""
    from embedding.store import open_embeddings

    found = {}
    for place in sorted(folder.root.glob("embeddings/*/")):
        first = next(place.glob("[!.]*.zarr"), None)
        if first is not None:
            found[place.name] = open_embeddings(first).contract
    return found


def features_table(
    contracts: Mapping[str, Mapping[str, Any]], shown: Collection[str] = (), slides: Mapping[str, int] | None = None
) -> str:
    """Embeddings by the names of their folders, with the settings in which they differ, in plain text.

    shown   settings that are listed also where they are equal, by the names that they have as options
    slides  how many each folder holds, as the last column
    """
    flat = {name: flatten(contract) for name, contract in contracts.items()}
    values = {
        title: [_cell(contract.get(key)) for contract in flat.values()]
        for title, key in _COLUMNS.items()
        if title in shown or len({str(contract.get(key)) for contract in flat.values()}) > 1
    }
    columns = [["", *contracts], *([title, *cells] for title, cells in values.items())]
    if slides is not None:
        columns.append(["slides", *(str(slides[name]) for name in contracts)])
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def several_fit(contracts: Mapping[str, Mapping[str, Any]], folder: RunFolder, option: str) -> StoreError:
    """The error where embeddings are to be chosen from; `option` names them on the command line."""
    table = features_table(contracts)
    problem = f"{len(contracts)} of them fit:\n\n{table}\n"
    if len({line.partition("  ")[2].strip() for line in table.splitlines()[1:]}) < len(contracts):
        told = [key for key in _unlike(contracts) if key not in _COLUMNS.values()]
        problem += f"\nThey differ also in {', '.join(told)}.\n" if told else ""
    return StoreError(folder.root / "embeddings", problem, f"name one with {option} NAME")


def choices(names: Collection[str], folder: RunFolder) -> str:
    """Names to choose from, for an error: of many the first ones."""
    if len(names) > _MOST:
        return f"{', '.join(list(names)[:_MOST])} or another of the {len(names)} that `wsi info {folder.root}` lists"
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def names_of(contract: Mapping[str, Any]) -> tuple[str, ...]:
    """Folders of the embeddings that make up a contract: of several backbones' where they are joined."""
    from embedding.contract import contract_name
    from embedding.slide_encoders.contract import slide_contract_name

    parts: list[Mapping[str, Any]] = contract.get("joined") or [contract]
    return tuple(slide_contract_name(part) if "tiles" in part else contract_name(dict(part)) for part in parts)


def stores_in(folder: RunFolder) -> dict[str, int]:
    """Name of the folder → how many slides' embeddings it holds, of all in the run."""
    counts = {place.name: len(list(place.glob("[!.]*.zarr"))) for place in sorted(folder.root.glob("embeddings/*/"))}
    return {name: count for name, count in counts.items() if count}


def _cell(value: object) -> str:
    text = "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text[:8] if len(text) == 64 else text  # a sha256


def choose_features(settings: Settings, named: str | None, folder: RunFolder) -> tuple[str, dict[str, Any]]:
    """(name, contract) of the embeddings called `named`, or of the only ones that are as the given settings say.

    A name may also be that of slides' own vectors. Raises StoreError where there are none, or several, with what tells
    them apart.
    """
    there = contracts_in(folder)
    vector = next((folder.root / "slide_embeddings").glob(f"{named}/[!.]*.zarr"), None) if named is not None else None
    if named is not None and vector is not None:
        from embedding.slide_store import open_slide_vector

        return named, open_slide_vector(vector).contract
    if not there:
        raise StoreError(folder.root / "embeddings", "there are no embeddings", "run `wsi embed` first")
    place = folder.root / "embeddings"
    if named is not None:
        if named not in there:
            raise StoreError(place, f"there are none called {named!r}", f"choose {choices(there, folder)}")
        return named, there[named]
    fitting = {name: contract for name, contract in there.items() if _fits(contract, settings)}
    if not fitting:
        remedy = f"embed with these settings, or name those that are there with --features: {choices(there, folder)}"
        raise StoreError(place, "none are as these settings say", remedy)
    if len(fitting) > 1:
        raise several_fit(fitting, folder, "--features")
    return next(iter(fitting.items()))


def _fits(contract: Mapping[str, Any], settings: Settings) -> bool:
    """Whether the contract is as every setting says that was given."""
    embed, tile = settings.get("embed") or {}, settings.get("tile") or {}
    stain = embed.get("stain") or {}
    asked = {_EMBED[key]: value for key, value in embed.items() if key in _EMBED and value not in (None, "auto")}
    asked |= {key: tile[key] for key in _TILE if tile.get(key) is not None}
    normalised = contract.get("stain") or {"method": "none"}
    if "weights" in embed and not _made_with(contract, Path(embed["weights"])):
        return False
    if embed.get("adapter") is not None and not _adapted_with(contract, Path(embed["adapter"])):
        return False
    return all(contract.get(key) == value for key, value in asked.items()) and all(
        normalised.get(key, 0) == stain[key] for key in ("method", "jitter") if key in stain
    )


def _made_with(contract: Mapping[str, Any], weights: Path) -> bool:
    from embedding.backbones import find_backbone
    from embedding.weights import find_weights, weights_digest

    file = find_weights(find_backbone(contract["backbone"]), weights)
    return contract.get("weights_sha256") == weights_digest(file)


def _adapted_with(contract: Mapping[str, Any], adapter: Path) -> bool:
    from embedding.adapter import adapter_digest

    return contract.get("adapter") == adapter_digest(adapter)


def _unlike(contracts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    first, *others = contracts.values()
    return list(dict.fromkeys(key for other in others for key, _, _ in differing(first, other)))
