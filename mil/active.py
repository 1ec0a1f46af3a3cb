"""Which tiles' labels would teach most: those that networks are unsure of, disagree on, or have seen nothing like.

uncertainty   entropy of the mean output, 1 at the decision
disagreement  what of that is between the networks and not within them: the information that a label gives about
              their weights (BALD: Houlsby et al. 2011; of an ensemble: Beluch et al., CVPR 2018)
diversity     farthest first from all that was chosen or reviewed (k-center: Sener & Savarese, ICLR 2018)
mixed         in turns: the tiles most likely to be of a class other than the first, so that what is rare is met at all
              and what only looks like it is unlearnt (Warmuth et al., J Chem Inf Comput Sci 2003; for skewed classes
              Attenberg & Provost, KDD 2010); and those of doubt and disagreement. In each, farthest first counts too
random        what the others are compared with
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

STRATEGIES = ("mixed", "uncertainty", "disagreement", "diversity", "random")
UNDECIDED = 0.5  # of the entropy of an even chance: one in nine against the other class
LIKELY = 4  # power of the rank by a class's output: about the likeliest fifth counts
_APART = 3  # tiles: nearer ones to a chosen place would show the same tissue


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Tiles (n,) of several slides, and what networks say of each alone.

    features      float (n, d)
    uncertainty   and disagreement, float (n,) in [0, 1]; disagreement NaN where fewer than two networks may speak
    slide         int (n,), patient int (n,): whose it is
    place         int (n, 2), its column and row in tiles
    reviewed      float (m, d), features of places that people have spoken of: no others like these are needed
    outputs       float (n, C), what networks say on the mean; None where no class is to be preferred
    """

    features: NDArray[np.floating]
    uncertainty: NDArray[np.floating]
    disagreement: NDArray[np.floating]
    slide: NDArray[np.integer]
    patient: NDArray[np.integer]
    place: NDArray[np.integer]
    reviewed: NDArray[np.floating]
    outputs: NDArray[np.floating] | None = None

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, slots=True)
class ChoiceSpec:
    """How many are chosen and how; of one slide at most `per_slide`, of one patient twice that; None: three times an
    even share."""

    count: int = 50
    by: str = "mixed"
    per_slide: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in STRATEGIES:
            raise SpecError("--by", f"{self.by!r} is unknown", f"choose {', '.join(STRATEGIES)}")
        for name, value in (("-k", self.count), ("--per-slide", self.per_slide)):
            if value is not None and not 1 <= value <= 5_000:
                raise SpecError(name, f"{value} is out of range", "give 1 to 5000")


def entropy(outputs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Entropy of rows (…, C) that sum to 1, over its maximum: (…,) in [0, 1]."""
    shares = np.clip(np.asarray(outputs, np.float64), 1e-12, 1)
    return np.asarray(-(shares * np.log(shares)).sum(axis=-1) / np.log(shares.shape[-1]))


def disagreement(outputs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of what networks (m, n, C) say of tiles: entropy of their mean less the mean of their entropies, (n,) in [0, 1].

    NaN for fewer than two networks.
    """
    if len(outputs) < 2:
        return np.full(outputs.shape[1], np.nan)
    return np.clip(entropy(outputs.mean(axis=0)) - entropy(outputs).mean(axis=0), 0, 1)


def shortlist(informative: NDArray[np.floating], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of one slide to choose from, int64 (k,) ascending: half the most informative, half drawn from the rest."""
    if len(informative) <= most:
        return np.arange(len(informative))
    order = np.argsort(-np.nan_to_num(informative), kind="stable")
    top, rest = order[: most // 2], order[most // 2 :]
    return np.sort(np.concatenate([top, rng.choice(rest, most - len(top), replace=False)]))


def choose(tiles: Candidates, spec: ChoiceSpec) -> NDArray[np.int64]:
    """Rows of the tiles to be looked at, those first that teach most: int64 (k,), fewer where there are no more.

    None lies within three tiles of another on the same slide. The same tiles and settings give the same choice.
    """
    if not len(tiles):
        return np.empty(0, np.int64)
    far = _Distances(tiles) if spec.by in ("mixed", "diversity") else None
    turns = _turns(tiles, spec)
    left, chosen = np.isfinite(turns[-1]), list[int]()
    slides = len(np.unique(tiles.slide[left]))
    cap = spec.per_slide or max(2, -(-3 * spec.count // max(slides, 1)))
    while len(chosen) < spec.count and left.any():
        mine = turns[len(chosen) % len(turns)]
        value = np.where(left, mine if far is None else mine * far.nearest, -np.inf)
        best = int(value.argmax())
        chosen.append(best)
        same = tiles.slide == tiles.slide[best]
        left &= ~(same & (np.abs(tiles.place - tiles.place[best]).max(axis=1) < _APART))
        for of, most in ((tiles.slide, cap), (tiles.patient, 2 * cap)):
            if (of[chosen] == of[best]).sum() >= most:
                left &= of != of[best]
        if far is not None:
            far.add(tiles.features[best : best + 1])
    return np.array(chosen, np.int64)


def _turns(tiles: Candidates, spec: ChoiceSpec) -> NDArray[np.float64]:
    """What a tile counts in each turn, (T, n)."""
    weights = _weights(tiles, spec)
    if spec.by != "mixed" or tiles.outputs is None:
        return weights[None]
    order = range(tiles.outputs.shape[1] - 1, 0, -1)  # the first class is what is left when the others are not there
    likely = [_ranks(tiles.outputs[:, place]) ** LIKELY for place in order]
    return np.stack([*likely, weights])


def _weights(tiles: Candidates, spec: ChoiceSpec) -> NDArray[np.float64]:
    """What a tile counts beside its distance, (n,); NaN for those that cannot be chosen so."""
    if spec.by == "random":
        return np.random.default_rng(spec.seed).random(len(tiles))
    if spec.by == "diversity":
        return np.ones(len(tiles))
    if spec.by == "mixed":
        # ranks, as one of both is often ten times the other; where networks cannot disagree, doubt alone counts
        doubt, apart = _ranks(tiles.uncertainty), _ranks(tiles.disagreement)
        return np.where(np.isnan(apart), doubt, (doubt + apart) / 2)
    return np.asarray({"uncertainty": tiles.uncertainty, "disagreement": tiles.disagreement}[spec.by], np.float64)


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks in (0, 1], NaN where the value is."""
    ranks, known = np.full(len(values), np.nan), np.flatnonzero(~np.isnan(values))
    ranks[known[np.argsort(values[known], kind="stable")]] = np.arange(1, len(known) + 1) / max(len(known), 1)
    return ranks


class _Distances:
    """Of every tile, the distance to the nearest that was chosen or reviewed, in standard deviations."""

    def __init__(self, tiles: Candidates):
        features = np.asarray(tiles.features, np.float32)
        self.mean, spread = features.mean(axis=0), features.std(axis=0)
        self.scale = np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 0)
        self.points = self._standard(features)
        # at the start all are as far from the middle as they are: the first choice is no outlier's privilege
        self.nearest = np.full(len(features), float(np.sqrt(features.shape[1])))
        if len(tiles.reviewed):
            self.add(tiles.reviewed)

    def add(self, features: NDArray[np.floating]) -> None:
        for point in self._standard(np.asarray(features, np.float32)):
            away = np.sqrt(((self.points - point) ** 2).sum(axis=1))
            self.nearest = np.minimum(self.nearest, away)

    def _standard(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(((features - self.mean) * self.scale).clip(-8, 8), np.float32)


def region_about(
    seed: int, place: NDArray[np.integer], features: NDArray[np.floating], alike: NDArray[np.bool_], most: int
) -> NDArray[np.int64]:
    """A tile with those beside it that look most like it, int64 (k,) with the tile first, k at most `most`.

    place  int (n, 2) column and row of a slide's tiles; alike: bool (n,), those that may be in a region with it
    A single tile is little to judge by; a fixed square would often hold both classes, and teach neither.
    """
    near = (np.abs(place - place[seed]).max(axis=1) <= 1) & alike
    near[seed] = False
    others = np.flatnonzero(near)
    away = np.linalg.norm(np.asarray(features[others], np.float64) - np.asarray(features[seed], np.float64), axis=1)
    return np.concatenate([[seed], others[np.argsort(away, kind="stable")][: most - 1]]).astype(np.int64)


def told(scores: Mapping[str, float], by: str) -> str:
    """Why a tile was chosen, in words."""
    if by == "random":
        return "drawn at random"
    words = []
    if by in ("mixed", "uncertainty"):
        unsure = "the model is undecided" if scores["uncertainty"] >= UNDECIDED else "the model is sure"
        words.append(f"{unsure} (entropy {scores['uncertainty']:.2f} of 1)")
    if by in ("mixed", "disagreement") and not np.isnan(scores["disagreement"]):
        words.append(f"its networks disagree ({scores['disagreement']:.2f} of 1)")
    if by in ("mixed", "diversity"):
        words.append("unlike the other choices")
    return ", ".join(words)
