"""What the user asks for when the tiles' embeddings of a slide become one vector."""

from dataclasses import dataclass

from wsi.errors import SpecError

from ..spec import PRECISIONS

DEFAULT_ENCODER = "mean"


@dataclass(frozen=True, slots=True)
class EncodeSpec:
    """How a slide's embeddings become its vector.

    encoder            name of an entry of SLIDE_ENCODERS
    backbone           whose embeddings are pooled by `mean`, which takes any; None takes the only ones there are
    features           which embeddings: a folder's name in RUN/embeddings; None finds the one that fits
    weights            file or folder to load instead of the entry's own source
    own_weights        these are not the weights that the authors published: their checksum is not expected
    device             auto, cpu, cuda, cuda:1, mps
    offline            make no network call
    trust_remote_code  run the Python code that came with the weights, where the entry needs it
    precision          auto (on a GPU the entry's own, else fp32), fp32, bf16, fp16
    """

    encoder: str = DEFAULT_ENCODER
    backbone: str | None = None
    features: str | None = None
    weights: str | None = None
    own_weights: bool = False
    device: str = "auto"
    offline: bool = False
    trust_remote_code: bool = False
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise SpecError("encode.precision", f"{self.precision!r} is unknown", f"choose {', '.join(PRECISIONS)}")
