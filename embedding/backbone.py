"""A backbone as data: everything that determines an embedding, and what its users must know."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from wsi.errors import BackboneError

Triple = tuple[float, float, float]
Norm = tuple[Triple, Triple]  # mean and standard deviation of RGB in [0, 1]

IMAGENET: Norm = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Norm = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI: Norm = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HOPTIMUS: Norm = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU: Norm = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
SATELLITE: Norm = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
LUNIT: Norm = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
TF_LITE: Norm = ((127 / 255,) * 3, (128 / 255,) * 3)
PHOTOGRAPHS = "photographs, not pathology"


@dataclass(frozen=True)
class Backbone:
    """What makes an embedding of a patch.

    family         who builds the network: a key of networks.FAMILIES
    arch           architecture, by the name it has in that family; `options` are its further arguments
    weights        hf-hub:OWNER/NAME (with `revision` and `file`), package:MODULE for weights inside a package, or
                   file:WHERE for weights that their authors publish elsewhere: they are given with --weights
    sha256         of the authors' weights file, where it is known: another file is then refused
    dim            length of the embedding
    resize_px      the patch is resized to this (antialiased, `interpolation`), then cropped centrally to `input_px`
    norm           mean and std of RGB in [0, 1]
    pooling        the variant of the embedding: cls, mean (of patch tokens), cls+mean, dense (one vector a patch token,
                   on their grid), pool (the architecture's own), or a name of the family's
    variants       variant → dim, of all that the backbone has; empty where `pooling` is the only one
    patch_px       side of a ViT's patch; None for other networks
    prefix_tokens  of a ViT: class and register tokens before the patch tokens
    tile_px, mpp   how the authors cut tiles: pixels and µm per pixel (several where it was trained at several)
    precision      what its authors run it in
    gated          the weights need an acceptance on the hub
    domain         what it was trained on
    notes          where published uses of the model differ, and what was chosen
    """

    name: str
    arch: str
    weights: str
    dim: int
    licence: str
    paper: str
    family: str = "timm"
    tile_px: int = 224
    mpp: tuple[float, ...] = (0.5,)
    input_px: int = 224
    resize_px: int = 224
    interpolation: str = "bicubic"
    pooling: str = "cls"
    variants: Mapping[str, int] = field(default_factory=dict)
    patch_px: int | None = None
    prefix_tokens: int = 1
    norm: Norm = IMAGENET
    precision: str = "fp16"
    gated: bool = False
    domain: str = "pathology"
    revision: str | None = None
    file: str | None = None
    sha256: str | None = None
    notes: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.name, self.pooling, self.weights, self.revision))

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one patch's embedding: (dim,), or (grid, grid, dim) where it is dense."""
        if self.pooling != "dense" or self.patch_px is None:
            return (self.dim,)
        side = self.input_px // self.patch_px
        return (side, side, self.dim)

    def variant(self, pooling: str | None) -> Self:
        """The entry with another of its variants; None keeps it. Raises BackboneError for one it does not have."""
        if pooling is None or pooling == self.pooling:
            return self
        if pooling not in self.variants:
            known = ", ".join(self.variants) or self.pooling
            raise BackboneError(self.name, f"it has no variant {pooling!r}", f"choose {known}")
        return replace(self, pooling=pooling, dim=self.variants[pooling])


def vit_variants(width: int) -> dict[str, int]:
    """The variants of a ViT of this width that has a class token."""
    return {"cls": width, "mean": width, "cls+mean": 2 * width, "dense": width}


def vit(name: str, arch: str, weights: str, width: int, **fields: Any) -> Backbone:
    """The entry of a ViT that has a class token: its variants, and of `dim` that which its pooling gives."""
    variants = vit_variants(width)
    return Backbone(name, arch, weights, variants[fields.get("pooling", "cls")], variants=variants, **fields)
