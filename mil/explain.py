"""Which tiles a network's answer rests on: four scores, each named for what it is. They work for any head.

No score is the truth about a tile. Attention says where a head looks, not what for; a tile alone has lost its slide;
gradients are local; leaving out one tile of many that say the same changes little. Where they agree there is reason to
believe them. That a map depends on what was learned at all is not given either (Adebayo et al., NeurIPS 2018).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from .network import Network

_TILES_AT_ONCE = 16_384  # tiles of all bags in one forward pass: some 100 MB for a head of width 512


@dataclass(frozen=True, slots=True)
class Method:
    """A score of tiles, for legends.

    title   as a legend says it; unit: of the numbers
    signed  whether 0 parts tiles that speak for the output from those that speak against it
    meaning one line for a reader who has not read the code
    """

    name: str
    title: str
    unit: str
    signed: bool
    meaning: str


METHODS = {
    method.name: method
    for method in (
        Method(
            "attention", "attention", "share", False, "how much the model looks at the tile, whatever it sees there"
        ),
        Method(
            "instance", "prediction of the tile alone", "output", False, "what the model says of this tile by itself"
        ),
        Method("gradient", "gradient x input", "log odds", True, "to first order, what the tile adds to the answer"),
        Method("occlusion", "occlusion", "log odds", True, "how much the answer drops when the tile is left out"),
    )
}


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Which score of which output.

    method      key of METHODS
    column      place in `task.columns` of the output that is explained
    covariates  float32 (K,), what the bag brings beside its tiles
    block       occlusion leaves out squares of block x block tiles, and shares their drop out evenly among their tiles
    tiles       places of the tiles to score, None for all; attention and gradient come for all at once
    """

    method: str = "attention"
    column: int = 0
    covariates: NDArray[np.float32] | None = None
    block: int = 1
    tiles: Sequence[int] | NDArray[np.integer] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SpecError("method", f"{self.method!r} is unknown", f"choose {', '.join(METHODS)}")
        if self.block < 1:
            raise SpecError("block", f"{self.block} is less than one tile", "give 1 or more")


def explain(
    network: "Network", task: Task, features: NDArray[np.floating], xy: NDArray[np.floating], asked: Asked
) -> NDArray[np.float32]:
    """A score for every tile of one bag, float32 (n,); NaN where `asked.tiles` leaves a tile out.

    features  (n, D) as the backbone made them, n >= 1; xy (n, 2), in tiles (`Bag.positions`)
    attention  weights of the head's pooling, sum 1. A head with attention for each output gives the column's; where its
               outputs are no columns (ordinal, survival), their mean
    instance   the activated output of a bag of this tile alone (and the covariates)
    gradient   gradient of the output's evidence (`Task.evidence`) with respect to the tile's standardised vector, times
               that vector, summed over dimensions (Shrikumar, Greenside & Kundaje, ICML 2017). For a linear model it is
               what the tile adds, counted from a tile that is the mean of the training part
    occlusion  evidence of the whole bag minus that of the bag without the tile (Zeiler & Fergus, ECCV 2014). Where no
               other tile is left, a tile that is the mean of the training part takes its place

    Cost, in forward passes of the whole bag: attention 1, gradient 1 and one back, instance about 1, occlusion one for
    each tile or block that is asked for: of 5,000 tiles ask for blocks, or for the tiles of highest attention.
    Raises SpecError for a column the task has not, and for the attention of a head that has none.
    """
    if not 0 <= asked.column < len(task.columns):
        problem = f"there is no output {asked.column} among {', '.join(task.columns)}"
        raise SpecError("column", problem, f"give 0 to {len(task.columns) - 1}")
    import torch

    device, training = network.mean.device, network.training
    network.eval()
    try:
        tiles = network.standardise(torch.from_numpy(np.array(features, np.float32)).to(device))
        known = None if asked.covariates is None else torch.from_numpy(asked.covariates)[None].to(device)
        bag = _Asking(network, task, tiles, torch.from_numpy(np.array(xy, np.float32)).to(device), known)
        scores = _SCORES[asked.method](bag, asked)
    finally:
        network.train(training)
    values: NDArray[np.float32] = scores.detach().float().cpu().numpy()
    if asked.tiles is not None:
        left_out = np.ones(len(values), bool)
        left_out[np.asarray(asked.tiles, np.int64)] = False
        values = np.where(left_out, np.float32(np.nan), values)
    return values


@dataclass(frozen=True, slots=True, eq=False)
class _Asking:
    """One bag before one network: standardised tiles (n, D), xy (n, 2), covariates (1, K) or None."""

    network: "Network"
    task: Task
    tiles: "Tensor"
    xy: "Tensor"
    known: "Tensor | None"

    def logits(self, masks: "Tensor") -> "Tensor":
        """(B, O) of the bag with only the tiles that each row of masks (B, n) keeps."""
        count = len(masks)
        known = None if self.known is None else self.known.expand(count, -1)
        features, xy = self.tiles.expand(count, -1, -1), self.xy.expand(count, -1, -1)
        logits: Tensor = self.network.pool(features, masks, xy, known).logits
        return logits


def _attention(bag: _Asking, asked: Asked) -> "Tensor":
    import torch

    mask = torch.ones(1, len(bag.tiles), dtype=torch.bool, device=bag.tiles.device)
    with torch.inference_mode():
        looked = bag.network.pool(bag.tiles[None], mask, bag.xy[None], bag.known).attention
    if looked is None:
        raise SpecError("method", "this head has no attention", "choose instance, gradient or occlusion")
    if looked.ndim == 2:
        return looked[0]
    outputs_are_columns = looked.shape[1] == len(bag.task.columns) and not bag.task.times
    return looked[0, asked.column] if outputs_are_columns else looked[0].mean(dim=0)


def _instance(bag: _Asking, asked: Asked) -> "Tensor":
    import torch

    wanted, scores = _wanted(bag, asked), torch.zeros(len(bag.tiles), device=bag.tiles.device)
    with torch.inference_mode():
        for part in wanted.split(_TILES_AT_ONCE):
            mask = torch.ones(len(part), 1, dtype=torch.bool, device=part.device)
            known = None if bag.known is None else bag.known.expand(len(part), -1)
            logits = bag.network.pool(bag.tiles[part, None], mask, bag.xy[part, None], known).logits
            output = bag.task.activate(logits.float().cpu().numpy())[:, asked.column]
            scores[part] = torch.from_numpy(np.ascontiguousarray(output)).to(part.device)
    return scores


def _gradient(bag: _Asking, asked: Asked) -> "Tensor":
    import torch

    tiles = bag.tiles.detach().requires_grad_()
    mask = torch.ones(1, len(tiles), dtype=torch.bool, device=tiles.device)
    with torch.enable_grad():
        logits = bag.network.pool(tiles[None], mask, bag.xy[None], bag.known).logits
        evidence = bag.task.evidence(logits, asked.column).sum()
        (slope,) = torch.autograd.grad(evidence, tiles)
    return (slope * bag.tiles).sum(dim=1)


def _occlusion(bag: _Asking, asked: Asked) -> "Tensor":
    import torch

    wanted, scores = _wanted(bag, asked), torch.zeros(len(bag.tiles), device=bag.tiles.device)
    block = torch.arange(len(wanted), device=wanted.device)
    if asked.block > 1:  # else each tile is its own, also where several overlap in one square
        block = torch.unique(torch.floor(bag.xy[wanted] / asked.block), dim=0, return_inverse=True)[1]
    numbers = torch.arange(int(block.max()) + 1, device=wanted.device)
    with torch.inference_mode():
        whole = torch.ones(1, len(bag.tiles), dtype=torch.bool, device=bag.tiles.device)
        evidence = bag.task.evidence(bag.logits(whole), asked.column)
        for part in numbers.split(max(1, _TILES_AT_ONCE // len(bag.tiles))):
            row, place = torch.nonzero(block == part[:, None], as_tuple=True)
            masks = whole.repeat(len(part), 1)
            masks[row, wanted[place]] = False
            size = torch.bincount(row, minlength=len(part))
            dropped = (evidence - bag.task.evidence(_without(bag, masks), asked.column)) / size
            scores[wanted[place]] = dropped[row]
    return scores


def _without(bag: _Asking, masks: "Tensor") -> "Tensor":
    """Logits of the bag as each row of masks leaves it; where it leaves nothing, of the training part's mean tile."""
    import torch

    left = masks.any(dim=1)
    if bool(left.all()):
        return bag.logits(masks)
    mean = torch.zeros_like(bag.tiles[:1, None])  # standardised, it is 0
    alone = bag.network.pool(mean, torch.ones(1, 1, dtype=torch.bool, device=mean.device), bag.xy[None, :1], bag.known)
    logits = alone.logits.expand(len(masks), -1).clone()
    if bool(left.any()):
        logits[left] = bag.logits(masks[left])
    return logits


def _wanted(bag: _Asking, asked: Asked) -> "Tensor":
    import torch

    places = np.arange(len(bag.tiles)) if asked.tiles is None else np.unique(np.asarray(asked.tiles, np.int64))
    return torch.from_numpy(places.astype(np.int64)).to(bag.tiles.device)


_SCORES: dict[str, Callable[[_Asking, Asked], "Tensor"]] = {
    "attention": _attention,
    "instance": _instance,
    "gradient": _gradient,
    "occlusion": _occlusion,
}


def extreme_tiles(
    scores: NDArray[np.floating],
    xy: NDArray[np.integer],
    span_px: int,
    k: int = 10,
    spread: float = 2.0,
    slide_of: NDArray[np.integer] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the k highest tiles, falling, and of the k lowest, rising, for a person to look at.

    scores (n,), NaN is never chosen; xy (n, 2), level-0 pixels; slide_of (n,), of bags of several slides
    No two chosen tiles of one slide lie nearer than `spread` tile sides (corner to corner, along x or y, the greater):
    the ten highest are otherwise ten pictures of one spot. Each list is shorter where the slide has no room; a tile is
    never in both, and the highest choose first.
    """
    if k < 1 or spread < 0:
        raise SpecError("extreme tiles", f"k {k}, spread {spread}", "give at least one tile, and no negative distance")
    free = np.isfinite(scores)
    slides = np.zeros(len(scores), np.int64) if slide_of is None else slide_of
    found: list[NDArray[np.int64]] = []
    for values in (np.asarray(scores, np.float64), -np.asarray(scores, np.float64)):
        chosen: list[int] = []
        while len(chosen) < k and free.any():
            best = int(np.where(free, values, -np.inf).argmax())
            chosen.append(best)
            apart = np.abs(xy - xy[best]).max(axis=1) >= spread * span_px
            free &= apart | (slides != slides[best])
            free[best] = False
        found.append(np.array(chosen, np.int64))
    return found[0], found[1]
