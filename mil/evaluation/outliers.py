"""Slides unlike those a model was trained on: distance in embedding space, with a threshold the cohort itself sets.

Mahalanobis distance (Lee, Lee, Lee & Shin, NeurIPS 2018) of a vector from the cohort's mean, in the space of its
principal components with Ledoit and Wolf's shrunk covariance (J Multivar Anal 2004); what these components cannot
express, the orthogonal distance of robust PCA (Hubert, Rousseeuw & Vanden Branden, Technometrics 2005), counts as one
more standardised coordinate, or a slide that differs in a direction the cohort never varies in would pass unseen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

MIN_VECTORS = 12  # fewer have no spread worth the name
_MAX_COMPONENTS = 128
_PARTS = 10  # of cross-validation, fewer where there are fewer patients


@dataclass(frozen=True, slots=True, eq=False)
class Outliers:
    """A cohort's vectors (slides' mean embeddings, or a sample of its tiles), and how far its own lie when left out.

    mean (D,), components (k, D) orthonormal, variances (k,) shrunk; all float64
    residual   median and scaled median deviation of a left-out vector's distance from the components' space
    left_out   (n,) ascending distances of the cohort's vectors, each from the rest of the patients
    quantile   of these that is the threshold: about 1 - quantile of such a cohort's own are flagged
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    variances: NDArray[np.float64]
    residual: tuple[float, float]
    left_out: NDArray[np.float64]
    quantile: float

    @property
    def threshold(self) -> float:
        """Distance above which a vector is flagged."""
        return float(np.quantile(self.left_out, self.quantile, method="higher"))

    def distance(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Distance (n,) of vectors (n, D) from the cohort, in standard deviations. Raises SpecError for another D."""
        given = _checked(vectors)
        if given.shape[1] != len(self.mean):
            problem = f"{given.shape[1]} numbers each, the cohort's have {len(self.mean)}"
            raise SpecError("embeddings", problem, "use the backbone of the training cohort")
        return _combine(*_parts(given, self.mean, self.components, self.variances), self.residual)

    def chance(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Share (n,) of a like cohort's own vectors that lie at least as far: a conformal p-value (Bates et al., Ann.
        Stat. 2023), never below 1 / (cohort + 1)."""
        beyond = len(self.left_out) - np.searchsorted(self.left_out, self.distance(vectors), side="left")
        return (1 + beyond) / (1 + len(self.left_out))

    def flags(self, vectors: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether each of (n, D) lies beyond the threshold, bool (n,)."""
        return self.distance(vectors) > self.threshold

    def share_beyond(self, vectors: NDArray[np.floating]) -> float:
        """Share of a slide's tiles (n, D), n > 0, beyond the threshold, where this was fitted on a cohort's tiles."""
        return float(self.flags(vectors).mean())

    def state(self) -> dict[str, NDArray[np.float64]]:
        """All of it as contiguous float64 arrays, for an .npz or safetensors file."""
        single = {"residual": np.asarray(self.residual), "quantile": np.asarray([self.quantile])}
        arrays = {name: getattr(self, name) for name in ("mean", "components", "variances", "left_out")}
        return {**arrays, **single}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> "Outliers":
        """What state gave. Raises SpecError when an array is missing."""
        missing = {"mean", "components", "variances", "left_out", "residual", "quantile"} - set(state)
        if missing:
            raise SpecError("outliers", f"the state has no {', '.join(sorted(missing))}", "fit it again")
        given = {name: np.asarray(values, np.float64) for name, values in state.items()}
        mean, std = given["residual"].tolist()
        quantile = float(given["quantile"][0])
        return cls(given["mean"], given["components"], given["variances"], (mean, std), given["left_out"], quantile)


def fit_outliers(
    vectors: NDArray[np.floating],
    patients: Sequence[str],
    quantile: float = 0.99,
    explained: float = 0.95,
    seed: int = 0,
) -> Outliers:
    """Fit on a cohort's vectors (n, D) of `patients` (n,); D may exceed n.

    Components are those that explain this share of the variance, n / 3 or 128 at most. The distances that set the
    threshold are those of patients left out, ten parts of them at most. Raises SpecError for fewer than MIN_VECTORS
    vectors or 3 patients, for NaN, when all vectors are equal, and for a quantile or share outside (0, 1].
    """
    given, names = _checked(vectors), np.asarray(patients, dtype=str)
    if names.shape != given.shape[:1]:
        raise SpecError("patients", f"{len(names)} for {len(given)} vectors", "give one for each")
    if not (0 < quantile < 1 and 0 < explained <= 1):
        raise SpecError("outliers", f"quantile {quantile}, explained {explained}", "give both between 0 and 1")
    unique, person = np.unique(names, return_inverse=True)
    if len(given) < MIN_VECTORS or len(unique) < 3:
        problem = f"{len(given)} vectors of {len(unique)} patients"
        raise SpecError("outliers", problem, f"give {MIN_VECTORS} vectors of 3 patients, or leave this out")
    part = (np.random.default_rng(seed).permutation(len(unique)) % min(_PARTS, len(unique)))[person]
    count = _components(given, explained)
    inside, outside = np.empty(len(given)), np.empty(len(given))
    for k in range(int(part.max()) + 1):
        rest = part != k
        inside[~rest], outside[~rest] = _parts(given[~rest], *_fit(given[rest], count))
    usual = float(np.median(outside))
    # Where the components span everything the residual is rounding alone: that is no spread.
    spread = max(1.4826 * float(np.median(np.abs(outside - usual))), 1e-6 * float(np.sqrt(given.var(axis=0).sum())))
    left_out = np.sort(_combine(inside, outside, (usual, spread)))
    return Outliers(*_fit(given, count), (usual, spread), left_out, quantile)


def _components(vectors: NDArray[np.float64], explained: float) -> int:
    """How many there are, the same for every part of cross-validation: distances grow with their number."""
    variances = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) ** 2
    if not variances[0] > 0:
        raise SpecError("outliers", "all vectors are equal", "check the embeddings")
    needed = int(np.searchsorted(variances.cumsum(), (explained - 1e-12) * variances.sum())) + 1
    return max(1, min(needed, len(vectors) // 3, vectors.shape[1], _MAX_COMPONENTS))


def _fit(
    vectors: NDArray[np.float64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, components and shrunk variances. Scores on components are uncorrelated, so shrinkage keeps them so."""
    from sklearn.covariance import ledoit_wolf_shrinkage
    from sklearn.decomposition import PCA

    if not np.ptp(vectors, axis=0).max() > 0:
        raise SpecError("outliers", "all vectors are equal, but for a few patients'", "check the embeddings")
    pca = PCA(min(count, len(vectors)), random_state=0).fit(vectors)
    scores = pca.transform(vectors)
    share = float(ledoit_wolf_shrinkage(scores))
    spread = scores.var(axis=0)
    variances = (1 - share) * spread + share * spread.mean()
    # A component without spread (fewer distinct vectors than components) would make every distance infinite.
    return pca.mean_, np.ascontiguousarray(pca.components_), np.maximum(variances, 1e-9 * variances.max())


def _parts(
    vectors: NDArray[np.float64],
    mean: NDArray[np.float64],
    components: NDArray[np.float64],
    variances: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared Mahalanobis distance within the components' space, and plain distance from it, each (n,)."""
    centred = vectors - mean
    scores = centred @ components.T
    return (scores**2 / variances).sum(axis=1), np.linalg.norm(centred - scores @ components, axis=1)


def _combine(
    inside: NDArray[np.float64], outside: NDArray[np.float64], residual: tuple[float, float]
) -> NDArray[np.float64]:
    beyond = np.maximum(outside - residual[0], 0) / residual[1]  # nearer than usual is no reason for suspicion
    return np.sqrt(inside + beyond**2)


def _checked(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    given = np.asarray(vectors, np.float64)
    if given.ndim != 2 or not given.shape[1] or not np.isfinite(given).all():
        raise SpecError("embeddings", f"shape {given.shape}, or NaN", "give (vectors, numbers), all finite")
    return given
