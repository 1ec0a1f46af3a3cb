"""Golden vectors: does a backbone, with these weights on this machine, give the embeddings that it gave elsewhere?

Four synthetic tiles are drawn from integers alone, so that they are the same bytes on every machine and with every
version of every library. A golden vector is their embeddings in float32, kept with the sha256 of the weights. Those in
golden/ ship; `record` writes more, and another machine compares with them.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import BackboneError
from wsi.publish import appear_file

from .backbone import Backbone
from .weights import weights_digest

if TYPE_CHECKING:
    from .loader import Embedder

TILES = "golden-tiles/1"  # whoever changes a tile changes this
SHIPPED = Path(__file__).parent / "golden"
LEAST_COSINE = 0.999
_GLASS, _STROMA, _CELL, _NUCLEUS = (243, 241, 244), (232, 168, 196), (214, 120, 172), (92, 56, 140)


@dataclass(frozen=True)
class Verdict:
    """What `verify` saw.

    shape           of the embeddings, (tiles, *row_shape)
    finite          whether all their values are
    cosine          the smallest over the tiles, against the golden vector; None where there is none
    difference      the largest absolute difference of a value, likewise
    source          where the golden vector comes from
    patches_per_s   in float32 on this device, in batches of four
    """

    weights_sha256: str
    shape: tuple[int, ...]
    finite: bool
    cosine: float | None
    difference: float | None
    source: str
    patches_per_s: float

    @property
    def state(self) -> str:
        """same, different, or unknown where there is nothing to compare with."""
        if not self.finite:
            return "different"
        if self.cosine is None:
            return "unknown"
        return "same" if self.cosine >= LEAST_COSINE else "different"


def golden_tiles(side_px: int) -> NDArray[np.uint8]:
    """Four RGB tiles, uint8 (4, side_px, side_px, 3), drawn from integers.

    0  tissue-like: pink ground with cells and dark nuclei on a jittered grid
    1  the edge of tissue: the same beside bright glass
    2  ramps: red grows rightwards, green downwards, blue along the diagonal
    3  noise: every value from a hash of its place
    """
    y, x = np.mgrid[0:side_px, 0:side_px].astype(np.int64)
    tissue = _tissue(x, y)
    edge = np.where((x * 3 + y > side_px * 2)[..., None], np.array(_GLASS, np.int64), tissue)
    ramps = np.stack((x * 255 // (side_px - 1), y * 255 // (side_px - 1), (x + y) * 255 // (2 * side_px - 2)), axis=-1)
    noise = np.stack([_hash(x, y, channel) % 256 for channel in range(3)], axis=-1)
    return np.stack((tissue, edge, ramps, noise)).astype(np.uint8)


def embed_golden(embedder: "Embedder") -> NDArray[np.float32]:
    """Embeddings of the golden tiles, float32 (4, *row_shape)."""
    import torch

    tiles = torch.from_numpy(golden_tiles(embedder.backbone.tile_px)).to(embedder.device)
    with torch.inference_mode():
        return embedder(tiles).float().cpu().numpy()


def verify(backbone: Backbone, weights: Path, device: str = "cpu", against: Path | None = None) -> Verdict:
    """Load the weights, embed the golden tiles in float32, and compare with the golden vector, if there is one.

    against  a file that `record` wrote; None takes the one that ships for these very weights
    Raises BackboneError when the weights do not load, or `against` is of another backbone, variant or weights.
    """
    from .loader import build

    digest = weights_digest(weights)
    path = against or shipped(backbone, digest)
    golden = None if path is None else _read(path, backbone, digest)
    embedder = build(backbone, weights, device, "fp32")
    vectors = embed_golden(embedder)
    cosine, difference = (None, None) if golden is None else _compare(vectors, golden)
    return Verdict(
        digest,
        vectors.shape,
        bool(np.isfinite(vectors).all()),
        cosine,
        difference,
        "" if path is None else "shipped" if against is None else str(path),
        _speed(embedder),
    )


def record(backbone: Backbone, weights: Path, target: Path, device: str = "cpu") -> None:
    """Write the golden vector of these weights, for `verify` to compare with on another machine."""
    from .loader import build

    vectors = embed_golden(build(backbone, weights, device, "fp32"))
    write_golden(backbone, weights_digest(weights), vectors, target, f"slidestream on {device}")


def write_golden(backbone: Backbone, digest: str, vectors: NDArray[np.float32], target: Path, made_by: str) -> None:
    """Write embeddings of the golden tiles, (4, *row_shape), as a golden vector; `made_by` says what computed them."""
    if not np.isfinite(vectors).all():
        raise BackboneError(backbone.name, "its embeddings are not finite", "check the weights; nothing is recorded")
    facts = {"schema": "golden/1", **_identity(backbone, digest), "made_by": made_by}
    rows = [[float(f"{value:.7g}") for value in row] for row in vectors.reshape(len(vectors), -1).tolist()]
    lines = ",\n  ".join(json.dumps(row) for row in rows)  # a vector a line
    with appear_file(target) as draft:
        draft.write_text(f'{json.dumps(facts, indent=1)[:-2]},\n "vectors": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def shipped(backbone: Backbone, digest: str) -> Path | None:
    """The golden vector that ships for a backbone, of this variant, with these weights."""
    for path in sorted(SHIPPED.glob("*.json")):
        if path.name.startswith(backbone.name) and _matches(json.loads(path.read_text()), backbone, digest):
            return path
    return None


def _identity(backbone: Backbone, digest: str) -> dict[str, Any]:
    """What a golden vector is of: also of the tiles' bytes, so that one drawn otherwise is seen."""
    tiles = hashlib.sha256(golden_tiles(backbone.tile_px).tobytes()).hexdigest()
    return {
        "backbone": backbone.name,
        "variant": backbone.pooling,
        "weights_sha256": digest,
        "tiles": TILES,
        "tile_px": backbone.tile_px,
        "tiles_sha256": tiles,
        "row_shape": list(backbone.row_shape),
    }


def _matches(content: Mapping[str, Any], backbone: Backbone, digest: str) -> bool:
    return all(content.get(key) == value for key, value in _identity(backbone, digest).items())


def _read(path: Path, backbone: Backbone, digest: str) -> NDArray[np.float32]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vectors = np.asarray(content["vectors"], np.float32)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"it is no golden vector ({type(error).__name__})"
        raise BackboneError(path, what, "give a file that `wsi backbones verify --record` wrote") from error
    wanted = _identity(backbone, digest)
    other = [f"{key} {content.get(key)}, not {value}" for key, value in wanted.items() if content.get(key) != value]
    if other:
        raise BackboneError(path, f"it is of another thing: {'; '.join(other)}", "record it of these weights")
    if vectors.shape != (4, math.prod(backbone.row_shape)):
        raise BackboneError(path, f"its vectors are of shape {vectors.shape}", "record it again")
    return vectors.reshape(4, *backbone.row_shape)


def _compare(found: NDArray[np.float32], golden: NDArray[np.float32]) -> tuple[float, float]:
    """(smallest cosine over the tiles, largest absolute difference)."""
    ours, theirs = (array.reshape(len(array), -1).astype(np.float64) for array in (found, golden))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(axis=1) / lengths).min()), float(np.abs(ours - theirs).max())


def _speed(embedder: "Embedder", least_s: float = 1.0) -> float:
    """Patches a second, of passes over the golden tiles for about a second; the model is warm already."""
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < least_s:
        done += len(embed_golden(embedder))
    return done / (time.perf_counter() - started)


def _hash(x: NDArray[np.int64], y: NDArray[np.int64], salt: int) -> NDArray[np.int64]:
    """A number in [0, 2^16) from a place: products of primes, folded. Stays far below 2^63."""
    mixed = (x * 73_856_093) ^ (y * 19_349_663) ^ ((salt + 1) * 83_492_791)
    mixed = (mixed % 1_000_003) * 48_271 % 2_147_483_647
    return (mixed ^ (mixed >> 13)) % 65_536


def _tissue(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Stroma with a fine grain, and in each square of 28 px a cell and its nucleus, off-centre by up to 6 px."""
    column, row = x // 28, y // 28
    dx = x - column * 28 - 14 - (_hash(column, row, 0) % 13 - 6)
    dy = y - row * 28 - 14 - (_hash(column, row, 1) % 13 - 6)
    radius = 3 + _hash(column, row, 2) % 4
    distance = dx * dx + dy * dy
    colours = np.array((_STROMA, _CELL, _NUCLEUS), np.int64)
    kind = (distance <= 4 * radius * radius).astype(np.int64) + (distance <= radius * radius)
    return colours[kind] + (_hash(x, y, 7) % 17 - 8)[..., None]
