"""The contract: all that determines an embedding of a patch, its hash, and how two of them are told apart."""

from collections.abc import Mapping
from typing import Any

from tiling.spec import TileSpec
from wsi.channels import Channels
from wsi.publish import fingerprint

from .adapter import adapter_digest
from .backbone import Backbone
from .spec import EmbedSpec
from .stain_target import stain_contract

_KNOWN_BY = ("backbone", "pooling", "weights_sha256", "precision", "tile_px", "mpp")
_TOOLS = {"trident": "TRIDENT", "mussel": "Mussel", "clam": "CLAM", "stamp": "STAMP", "atlaspatch": "AtlasPatch",
          "anndata": "AnnData", "spatialdata": "SpatialData", "bag": "another tool"}  # fmt: skip


def make_contract(
    backbone: Backbone,
    digest: str,
    tile: TileSpec,
    embed: EmbedSpec | None = None,
    precision: str = "fp32",
    pixels: str | None = None,
) -> dict[str, Any]:
    """All that determines an embedding of a patch, and a hash over it.

    digest     sha256 of the weights file
    tile       how the tiles were asked for; of it size, scale and colours count
    embed      how they are embedded; of it stain, views, stored dtype and, where there are such, the adapter's content
               and an engine that is not torch count
    precision  what the network is computed in: fp32, bf16 or fp16
    pixels     what the slide's pixels went through before they were embedded, None where they are its own
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
    if embed.engine != "torch":  # without it the contract is that of embeddings made before there was a choice
        contract["engine"] = embed.engine
    if embed.adapter is not None:
        contract["adapter"] = adapter_digest(embed.adapter)
    if pixels is not None:
        contract["pixels"] = pixels
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
    ours, theirs = flatten(found), flatten(wanted)
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [(key, ours.get(key), theirs.get(key)) for key in keys if key != "hash" and ours.get(key) != theirs.get(key)]


def side_by_side(
    found: Mapping[str, Any], wanted: Mapping[str, Any], titles: tuple[str, str] = ("these embeddings", "the model")
) -> str:
    """A table of two contracts in plain text, of up to 80 columns: the hashes, a line each key that differs, marked,
    and of the others those that the embeddings are known by. Of long values it shows where they begin to differ.

    Of another tool's contract and one of ours, only what both state is compared.
    """
    ours, theirs = flatten(found), flatten(wanted)
    unlike = [key for key, _, _ in differing(found, wanted)]
    alike = [key for key in ours if key in theirs and key not in unlike and key != "hash"]
    unsaid: list[str] = []
    if ("origin" in ours) != ("origin" in theirs):
        unsaid = [key for key in unlike if key != "origin" and (key in ours) != (key in theirs)]
    shown = [*(key for key in unlike if key not in unsaid), *(key for key in alike if key in _KNOWN_BY)]
    if ours.get("hash") or theirs.get("hash"):
        shown.insert(0, "hash")
    names = [f"{'≠' if key in unlike else ' '} {key}" for key in shown]
    first = max(len(name) for name in ("", *names))
    width = max(18, (80 - first - 4) // 2)
    cells = [titles, *(_beside(ours.get(key), theirs.get(key), width) for key in shown)]
    second = max(len(left) for left, _ in cells)
    lines = [f"{name:<{first}}  {a:<{second}}  {b}".rstrip() for name, (a, b) in zip(["", *names], cells, strict=True)]
    rest = len(alike) - sum(key in _KNOWN_BY for key in alike)
    lines += [f"  and {rest} more that {'is' if rest == 1 else 'are'} equal"] if rest else []
    lines += [f"  and {len(unsaid)} more that only one of them states"] if unsaid else []
    return "\n".join(lines)


def explain_mismatch(
    found: Mapping[str, Any], wanted: Mapping[str, Any], titles: tuple[str, str] = ("these embeddings", "the model")
) -> tuple[str, str]:
    """(problem, remedy) for an error, where embeddings of the contract `found` meet a model of the contract `wanted`.

    titles  what the two are called: in the problem, and over the columns of the table that it ends with
    """
    tool = made_by(wanted)
    if tool is not None and made_by(found) is None:
        problem = (
            f"the model was trained on embeddings that {tool} made ({contract_name(wanted)}), none of ours will do"
        )
        bring = "bring this cohort's features in with `wsi convert FILES --to run -o RUN`, then run `wsi predict`"
        return problem, f"make them with {tool} as the model's were, {bring}"
    names = f"{titles[0]} {contract_name(found)}, {titles[1]} {contract_name(wanted)}"
    problem = f"the contracts differ: {names}\n\n{side_by_side(found, wanted, titles)}\n"
    if tool is not None:
        return problem, f"bring in features with `wsi convert` that {tool} made as it did the model's"
    unlike = {key for key, _, _ in differing(found, wanted)}
    if unlike == {"weights_sha256"}:
        return problem, "embed with the model's weights: name their file with --weights"
    if unlike == {"adapter"}:
        named = "name its folder with --adapter" if wanted.get("adapter") else "leave --adapter out"
        return problem, f"embed with what the model was trained on: {named}"
    return problem, "embed as for the model: `wsi run` with --model takes the settings from it, --weights its weights"


def made_by(contract: Mapping[str, Any]) -> str | None:
    """The tool that made embeddings which were brought in; None for our own."""
    origin = contract.get("origin")
    return None if origin is None else _TOOLS.get(str(origin), str(origin))


def _beside(ours: object, theirs: object, width: int) -> tuple[str, str]:
    """Two values as texts of at most `width` characters, cut so that the first difference is seen."""
    one, other = ("–" if value is None else str(value) for value in (ours, theirs))
    at = next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    at = 0 if one == other else at
    return _cut(one, at, width), _cut(other, at, width)


def _cut(text: str, at: int, width: int) -> str:
    """`width` characters of a text, with that at `at` among them; "…" where some are left out."""
    start = max(0, min(at - width // 3, len(text) - width))
    kept = text[start : start + width]
    kept = f"…{kept[1:]}" if start else kept
    return f"{kept[:-1]}…" if start + width < len(text) else kept


def flatten(contract: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} → {"a.b": 1}; tuples become lists, as JSON would return them."""
    flat: dict[str, object] = {}
    for key, value in contract.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
