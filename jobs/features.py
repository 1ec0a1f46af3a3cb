"""Which of a run's embeddings a command is about: they are known by their contracts, so no weights are needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedding.contract import differing
from wsi.errors import StoreError

from .config import Settings
from .folder import RunFolder

# a setting → what the contract calls it
_EMBED = {"backbone": "backbone", "variant": "pooling", "precision": "precision", "dtype": "dtype", "views": "views"}
_TILE = ("tile_px", "mpp", "icc", "channels")


def contracts_in(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Name of the folder → contract, of all finished embeddings in the run."""
    from embedding.store import open_embeddings

    found = {}
    for place in sorted(folder.root.glob("embeddings/*/")):
        first = next(place.glob("[!.]*.zarr"), None)
        if first is not None:
            found[place.name] = open_embeddings(first).contract
    return found


def choose_features(settings: Settings, named: str | None, folder: RunFolder) -> tuple[str, dict[str, Any]]:
    """(name, contract) of the embeddings called `named`, or of the only ones that are as the given settings say.

    Raises StoreError where there are none, or several, with what tells them apart.
    """
    there = contracts_in(folder)
    if not there:
        raise StoreError(folder.root / "embeddings", "there are no embeddings", "run `wsi embed` first")
    if named is not None:
        if named not in there:
            raise StoreError(folder.root / "embeddings", f"there are none called {named!r}", f"choose {_list(there)}")
        return named, there[named]
    fitting = {name: contract for name, contract in there.items() if _fits(contract, settings)}
    if not fitting:
        remedy = f"embed with these settings, or name those that are there with --features: {_list(there)}"
        raise StoreError(folder.root / "embeddings", "none are as these settings say", remedy)
    if len(fitting) > 1:
        remedy = f"name them with --features: {_list(fitting)}"
        raise StoreError(folder.root / "embeddings", f"several fit, which differ in {_unlike(fitting)}", remedy)
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
    return all(contract.get(key) == value for key, value in asked.items()) and all(
        normalised.get(key, 0) == stain[key] for key in ("method", "jitter") if key in stain
    )


def _made_with(contract: Mapping[str, Any], weights: Path) -> bool:
    from embedding.backbones import find_backbone
    from embedding.weights import find_weights, weights_digest

    file = find_weights(find_backbone(contract["backbone"]), weights)
    return contract.get("weights_sha256") == weights_digest(file)


def _unlike(contracts: Mapping[str, Mapping[str, Any]]) -> str:
    first, *others = contracts.values()
    keys = {key: None for other in others for key, _, _ in differing(first, other)}
    return ", ".join(keys) or "nothing but their hash"


def _list(contracts: Mapping[str, object]) -> str:
    return " or ".join(contracts)
