"""What the user asks for when patches are embedded."""

from dataclasses import dataclass, field

from wsi.errors import SpecError

from .backbone import Backbone
from .backbones import DEFAULT_BACKBONE, find_backbone

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
ENGINES = ("torch", "openvino")
STAIN_METHODS = ("none", "macenko", "reinhard", "vahadane")


@dataclass(frozen=True, slots=True)
class StainSpec:
    """What is done to the colours of a patch before the backbone sees it; part of the contract.

    method   none, macenko, reinhard or vahadane: normalise the slide's stains to those of a reference
    target   picture whose stains are the reference; None for the one that ships
    jitter   half the range of a random factor and offset of each dye's amount in a patch (0.05 is light, 0.2 strong),
             0 for none; drawn by `seed` and the patch's place in the slide's grid: the same in every run
    """

    method: str = "none"
    target: str | None = None
    jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in STAIN_METHODS:
            raise SpecError("embed.stain.method", f"{self.method!r} is unknown", f"choose {', '.join(STAIN_METHODS)}")
        if not 0 <= self.jitter <= 1:
            raise SpecError("embed.stain.jitter", f"{self.jitter} is out of range", "give 0 to 1, such as 0.05")
        if self.target is not None and self.method == "none":
            raise SpecError("embed.stain.target", "nothing is normalised to it", "choose a method, too")


@dataclass(frozen=True, slots=True)
class EmbedSpec:
    """How patches become embeddings.

    backbone     name of an entry of BACKBONES
    variant      one of the entry's variants, such as cls or cls+mean; None is its own
    weights      file or folder to load instead of the entry's own source
    own_weights  these are not the weights that the authors published: their checksum is not expected
    adapter      folder that fine-tuning made, laid over these weights; None for the backbone as it is
    batch        patches a step; None suits the device
    device       auto, cpu, cuda, cuda:1, mps, or several: cuda:0,cuda:1
    precision    auto (bf16 where the chip computes in it), fp32, bf16, fp16
    compile      torch.compile: auto (where the run is long enough to pay for it), on, off
    engine       what computes the network: torch, or openvino, on a CPU and in fp32, where it is 1.5 to 3 times as fast
                 for convolutional networks; it is an extra of the package
    dtype        of the stored embeddings: float16 or float32
    views        1, or up to 8 flips and quarter turns of each patch, each embedded, the patch as it is first
    stain        what is done to colours before
    strict       refuse tiles of another size or scale than the backbone's own, instead of a warning
    offline      make no network call
    """

    backbone: str = DEFAULT_BACKBONE
    variant: str | None = None
    weights: str | None = None
    own_weights: bool = False
    adapter: str | None = None
    batch: int | None = None
    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"
    engine: str = "torch"
    dtype: str = "float16"
    views: int = 1
    stain: StainSpec = field(default_factory=StainSpec)
    strict: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise SpecError("embed.batch", f"{self.batch} is out of range", "give at least 1")
        if not 1 <= self.views <= 8:
            raise SpecError("embed.views", f"{self.views} is out of range", "give 1 to 8")
        checks = (
            ("precision", self.precision, PRECISIONS),
            ("compile", self.compile, ("auto", "on", "off")),
            ("engine", self.engine, ENGINES),
            ("dtype", self.dtype, ("float16", "float32")),
        )
        for name, value, known in checks:
            if value not in known:
                raise SpecError(f"embed.{name}", f"{value!r} is unknown", f"choose {', '.join(known)}")
        if self.engine == "openvino" and (self.precision not in ("auto", "fp32") or self.compile == "on"):
            problem = "OpenVINO computes in fp32, and is not compiled by torch"
            raise SpecError("embed.engine", problem, "leave --precision and --compile away, or --engine")

    def entry(self) -> Backbone:
        """The backbone's entry, of the wanted variant. Raises BackboneError for an unknown name or variant."""
        return find_backbone(self.backbone, self.variant)
