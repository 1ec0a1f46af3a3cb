"""Model + bag → class, attention and per-tile scores; never from a model that saw the patient in training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .bag import Bag, require_contract
from .model import TrainedModel

if TYPE_CHECKING:
    from torch import nn

_TILES_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a model says of one slide. Softmax is not a probability: nothing here is calibrated.

    softmax    float32 (C,), in the order of `classes`; None when empty, like `predicted`, the largest one's class
    origin     which models spoke: "mean of 5 folds", or "held-out fold 2" for a patient of the training cohort
    scores     float32 (n, C): softmax the model gives to a bag that holds only that tile
    attention  float32 (n,): on the whole bag, mean over the models that spoke; sums to 1
    xy         int64 (n, 2), tile top-left corners in level-0 pixels; span_px is the tiles' side there
    status     done, or empty for a slide without tissue
    """

    slide_id: str
    classes: tuple[str, ...]
    softmax: NDArray[np.float32] | None
    predicted: str | None
    origin: str
    scores: NDArray[np.float32]
    attention: NDArray[np.float32]
    xy: NDArray[np.int64]
    span_px: int
    tiles: int
    status: str


def predict(model: TrainedModel, bag: Bag) -> Prediction:
    """Predict one bag.

    A bag whose slide, case or patient was in the training cohort is predicted by the one fold's model that did not
    see it; any other by the mean softmax of all folds. Raises BackboneError when the bag's embeddings are of another
    contract than the model's, SpecError when every fold's model has seen something of the bag.
    """
    if bag.tiles == 0:
        return _empty(model, bag)
    require_contract(bag, model.contract, model.contract_hash, model.head.dim)
    folds = model.folds_without(bag)
    if not folds:
        raise SpecError(
            bag.name,
            "its slide and its patient lie in different folds of the training cohort, so every model has seen it",
            "correct the patient_id in the manifest, or predict with a model of another cohort",
        )
    total = len(model.weights)
    answers = [apply_network(model.network(fold), bag.features) for fold in folds]
    softmax, attention, scores = (np.stack(part).mean(axis=0) for part in zip(*answers, strict=True))
    return Prediction(
        slide_id=bag.name,
        classes=model.classes,
        softmax=softmax,
        predicted=model.classes[int(softmax.argmax())],
        origin=f"held-out fold {folds[0]}" if len(folds) < total else f"mean of {total} folds",
        scores=scores,
        attention=attention,
        xy=bag.xy,
        span_px=bag.span_px,
        tiles=bag.tiles,
        status="done",
    )


def apply_network(
    network: "nn.Module", features: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """(softmax (C,), attention (n,), per-tile softmax (n, C)) of one bag's features (n, d), n >= 1."""
    import torch

    tiles = torch.from_numpy(features)
    with torch.inference_mode():
        whole = network(tiles[None], torch.ones(1, len(tiles), dtype=torch.bool))
        scores = []
        for start in range(0, len(tiles), _TILES_AT_ONCE):
            chunk = tiles[start : start + _TILES_AT_ONCE]
            single = network(chunk[:, None], torch.ones(len(chunk), 1, dtype=torch.bool))
            scores.append(single.logits.float().softmax(dim=1))
    softmax = whole.logits[0].float().softmax(dim=0)
    return softmax.numpy(), whole.attention[0].float().numpy(), torch.cat(scores).numpy()


def _empty(model: TrainedModel, bag: Bag) -> Prediction:
    classes = len(model.classes)
    return Prediction(
        slide_id=bag.name,
        classes=model.classes,
        softmax=None,
        predicted=None,
        origin="no tissue",
        scores=np.zeros((0, classes), np.float32),
        attention=np.zeros(0, np.float32),
        xy=bag.xy,
        span_px=bag.span_px,
        tiles=0,
        status="empty",
    )
