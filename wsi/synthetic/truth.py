"""Where the tumour of a synthetic slide is, and how much of it lies under a tile."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SlideError

GLASS, TISSUE, TUMOUR = 0, 1, 2


@dataclass(frozen=True)
class Truth:
    """labels  uint8 (rows, cols): 0 glass, 1 tissue, 2 tumour; scale  level-0 px per label px."""

    labels: NDArray[np.uint8]
    scale: float

    @property
    def tumour_share(self) -> float:
        """Share of the tissue that is tumour, 0..1."""
        return float((self.labels == TUMOUR).sum() / max(1, (self.labels != GLASS).sum()))


def truth_path(slide: Path) -> Path:
    return slide.with_name(f"{slide.stem}.truth.png")


def write_truth(path: Path, truth: Truth) -> None:
    """Write the labels as PNG; the scale is in its text fields."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_text("scale", repr(truth.scale))
    notes.add_text("content", "SYNTHETIC slide: 0 glass, 1 tissue, 2 tumour")
    Image.fromarray(truth.labels).save(path, format="PNG", pnginfo=notes)


def read_truth(path: Path | str) -> Truth:
    """The truth map of a synthetic slide; `path` is the slide or the .truth.png beside it."""
    from PIL import Image

    path = Path(path)
    source = path if path.name.endswith(".truth.png") else truth_path(path)
    if not source.exists():
        raise SlideError(source, "no truth map", "only slides of the synthetic generator have one")
    with Image.open(source) as image:
        if "scale" not in image.info:
            raise SlideError(source, "its scale is missing", "write the synthetic slide again")
        return Truth(np.asarray(image), float(image.info["scale"]))


def tile_truth(truth: Truth, xy: NDArray[np.int64], span_px: float) -> NDArray[np.float32]:
    """Share of tumour under each tile, float32 (n,) in [0, 1].

    xy  (n, 2) top-left corners in level-0 px; span_px is the tile's side there. Label pixels that a tile touches count.
    """
    total = np.pad((truth.labels == TUMOUR).cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # any box in four look-ups
    limit = np.array(truth.labels.shape[::-1])
    x0, y0 = np.clip(np.floor(xy / truth.scale), 0, limit - 1).astype(int).T
    x1, y1 = np.clip(np.ceil((xy + span_px) / truth.scale), 1, limit).astype(int).T
    tumour = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
    return (tumour / ((x1 - x0) * (y1 - y0))).astype(np.float32)
