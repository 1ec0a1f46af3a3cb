"""The contract: all that determines an embedding of a patch, its hash, and how two of them are told apart."""

from collections.abc import Mapping
from typing import Any

from tiling.spec import TileSpec
from wsi.channels import Channels
from wsi.publish import fingerprint

from .backbone import Backbone
from .spec import EmbedSpec
from .stain_target import stain_contract


def make_contract(
    backbone: Backbone, digest: str, tile: TileSpec, embed: EmbedSpec | None = None, precision: str = "fp32"
) -> dict[str, Any]:
    """All that determines an embedding of a patch, and a hash over it.

    digest     sha256 of the weights file
    tile       how the tiles were asked for; of it size, scale and colours count
    embed      how they are embedded; of it stain, views and stored dtype count
    precision  what the network is computed in: fp32, bf16 or fp16
    Which chip computed it is not part of it: that difference is below the precision's own.
    """
    embed = embed or EmbedSpec(backbone.name)
    contract: dict[str, Any] = {
        "backbone": backbone.name,
        "family": backbone.family,
        "arch": backbone.arch,
        "options": dict(backbone.options),
        "weights_sha256": digest,
        "pooling": backbone.pooling,
        "dim": backbone.dim,
        "resize_px": backbone.resize_px,
        "input_px": backbone.input_px,
        "interpolation": f"{backbone.interpolation}, antialiased",
        "mean": list(backbone.norm[0]),
        "std": list(backbone.norm[1]),
        "precision": precision,
        "dtype": embed.dtype,
        "views": embed.views,
        "stain": stain_contract(embed.stain),
        "tile_px": tile.tile_px,
        "mpp": tile.mpp,
        "icc": tile.icc,
        "channels": tile.channels and str(Channels.parse(tile.channels)),
    }
    return {**contract, "hash": fingerprint(contract)}


def contract_name(contract: Mapping[str, Any]) -> str:
    """Short name of a contract, as used for folders: backbone and the first digits of the hash."""
    return f"{contract['backbone']}-{contract['hash'][:8]}"


def off_native(backbone: Backbone, tile: TileSpec) -> list[str]:
    """In words, how the tiles differ from those that the backbone's authors cut; empty where they do not."""
    said = []
    if tile.tile_px != backbone.tile_px:
        said.append(f"tiles of {tile.tile_px} px, its authors' have {backbone.tile_px}")
    if all(abs(tile.mpp / mpp - 1) > 0.1 for mpp in backbone.mpp):
        said.append(f"{tile.mpp:g} µm/px, its authors' have {' or '.join(f'{mpp:g}' for mpp in backbone.mpp)}")
    return said


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[tuple[str, object, object]]:
    """(key, what is, what is wanted) of all that two contracts differ in, but for the hash that follows from it."""
    ours, theirs = _flat(found), _flat(wanted)
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [(key, ours.get(key), theirs.get(key)) for key in keys if key != "hash" and ours.get(key) != theirs.get(key)]


def side_by_side(
    found: Mapping[str, Any], wanted: Mapping[str, Any], titles: tuple[str, str] = ("these embeddings", "the model")
) -> str:
    """A table of two contracts in plain text: a line each key, those that differ marked, first the names and hashes."""
    ours, theirs = _flat(found), _flat(wanted)
    unequal = {key for key, _, _ in differing(found, wanted)}
    keys = sorted(dict.fromkeys([*ours, *theirs]), key=lambda key: (key != "hash", key not in unequal))
    rows = [("", *titles)] + [
        (f"{'≠' if key in unequal else ' '} {key}", _shown(ours.get(key)), _shown(theirs.get(key))) for key in keys
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows)


def _shown(value: object) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 34 else f"{text[:31]}…{text[-2:]}"


def _flat(contract: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} → {"a.b": 1}; tuples become lists, as JSON would return them."""
    flat: dict[str, object] = {}
    for key, value in contract.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
