"""What a slide encoder needs of the tiles' embeddings, and the contract that its vectors are made under."""

from collections.abc import Mapping
from typing import Any

from wsi.errors import BackboneError
from wsi.publish import fingerprint

from ..backbones import find_backbone
from ..contract import differing, side_by_side
from .encoder import SlideEncoder


def check_fits(encoder: SlideEncoder, tiles: Mapping[str, Any]) -> list[str]:
    """In words, how embeddings of the contract `tiles` differ from those that the encoder was trained on.

    Other size, scale or stains, and a fine-tuned backbone are told; of another backbone, pooling or length they mean
    something else to the encoder: BackboneError then, with both side by side.
    """
    if tiles.get("pooling") == "dense":
        raise BackboneError(
            encoder.name, "these embeddings are dense, not one vector a tile", "embed with another --variant"
        )
    wanted = needs(encoder)
    found = {key: tiles.get(key) for key in wanted}
    if any(key in ("backbone", "pooling", "dim") for key, _, _ in differing(found, wanted)):
        table = side_by_side(found, wanted, ("these embeddings", f"what {encoder.name} needs"))
        tiles_so = f"--backbone {wanted['backbone']} --tile-px {encoder.tile_px} --tile-mpp {encoder.mpp[0]:g}"
        remedy = f"tile and embed with {tiles_so}, or choose another --encoder"
        raise BackboneError(encoder.name, f"it was trained on embeddings of another kind\n\n{table}\n", remedy)
    said = []
    if wanted and tiles["tile_px"] != encoder.tile_px:
        said.append(f"tiles of {tiles['tile_px']} px, its authors' have {encoder.tile_px}")
    if wanted and all(abs(tiles["mpp"] / mpp - 1) > 0.1 for mpp in encoder.mpp):
        said.append(f"{tiles['mpp']:g} µm/px, its authors' have {' or '.join(f'{mpp:g}' for mpp in encoder.mpp)}")
    if wanted and tiles.get("stain"):
        said.append("stains that were changed before, its authors' were not")
    if wanted and tiles.get("adapter"):
        said.append("a backbone that was fine-tuned, its authors' was not")
    return said


def needs(encoder: SlideEncoder) -> dict[str, Any]:
    """The part of the tiles' contract that the encoder asks for; empty where any will do."""
    if encoder.backbone is None:
        return {}
    return {
        "backbone": encoder.backbone,
        "pooling": find_backbone(encoder.backbone, encoder.variant).pooling,
        "dim": encoder.tile_dim,
        "tile_px": encoder.tile_px,
        "mpp": encoder.mpp[0] if len(encoder.mpp) == 1 else list(encoder.mpp),
    }


def make_slide_contract(
    encoder: SlideEncoder, digest: str | None, tiles: Mapping[str, Any], precision: str = "fp32"
) -> dict[str, Any]:
    """All that determines a slide's vector but its tiles, and a hash over it.

    digest     sha256 of the weights file, or over weights and code of a folder; None where there are none
    tiles      contract of the tiles' embeddings, which is part of it
    precision  what the network is computed in: fp32, bf16 or fp16
    """
    contract = {
        "encoder": encoder.name,
        "arch": encoder.arch,
        "options": dict(encoder.options),
        "weights_sha256": digest,
        "dim": encoder.dim or tiles["dim"],
        "coordinates": encoder.coordinates,
        "precision": precision,
        "tiles": dict(tiles),
    }
    return {**contract, "hash": fingerprint(contract)}


def slide_contract_name(contract: Mapping[str, Any]) -> str:
    """Short name of a contract, as used for folders: encoder and the first digits of the hash."""
    return f"{contract['encoder']}-{contract['hash'][:8]}"
