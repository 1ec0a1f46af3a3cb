"""What the user asks for when patches are embedded."""

from dataclasses import dataclass

from wsi.errors import SpecError

from .backbones import DEFAULT_BACKBONE, Backbone, find_backbone


@dataclass(frozen=True, slots=True)
class EmbedSpec:
    """How patches become embeddings.

    backbone  name of an entry of BACKBONES
    weights   file or folder to load instead of the entry's own source
    batch     patches a step; None suits the device
    device    auto, cpu, cuda, cuda:1, mps
    """

    backbone: str = DEFAULT_BACKBONE
    weights: str | None = None
    batch: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise SpecError("embed.batch", f"{self.batch} is out of range", "give at least 1")

    def entry(self) -> Backbone:
        """The backbone's entry. Raises BackboneError for an unknown name."""
        return find_backbone(self.backbone)
