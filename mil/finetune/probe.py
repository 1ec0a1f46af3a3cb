"""A linear probe on embeddings, before and after fine-tuning, judged on the same held-out groups.

The probe is multinomial logistic regression on standardised embeddings, its strength chosen on the validation groups;
the test groups are used once, for the figures. Both sides of a comparison are treated alike.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.agreement import balanced_accuracies
from ..evaluation.compare import compare_statistic
from ..evaluation.discrimination import macro_auroc, weighted_macro_auroc
from ..evaluation.estimate import Estimate, Statistic, bootstrap
from .cohort import TEST, TRAIN, VALIDATION

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse penalty; embeddings are longer than cohorts are large


@dataclass(frozen=True, eq=False)
class Probe:
    """Logits are weight · (x - mean) / std + bias.

    weight float64 (C, d), bias (C,), mean and std (d,); strength: the inverse penalty that was chosen
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    strength: float

    def softmax(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, d) → (n, C), rows that sum to 1."""
        return softmax((features - self.mean) / self.std @ self.weight.T + self.bias)


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Along the last axis."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def standard(features: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and spread (d,) of features (n, d); a feature that never changes has spread 1."""
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    return mean, np.where(std > 1e-8, std, 1.0)


def fit_probe(features: NDArray[np.floating], truth: NDArray[np.int64], parts: NDArray[np.int8], classes: int) -> Probe:
    """Fit on the training items, choose the strength on the validation items: features (m, d), truth (m,), parts (m,).

    Classes count the same, however many items they have.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.utils.class_weight import compute_sample_weight

    train, check = parts == TRAIN, parts == VALIDATION
    mean, std = standard(features[train])
    scaled, weight = (features - mean) / std, compute_sample_weight("balanced", truth[check])
    best, least = None, np.inf
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=500)
        model.fit(scaled[train], truth[train])
        rows, bias = model.coef_, model.intercept_
        if classes == 2:  # one row of the difference
            rows, bias = np.concatenate((-rows, rows)) / 2, np.concatenate((-bias, bias)) / 2
        probe = Probe(rows, bias, mean, std, strength)
        said = probe.softmax(features[check])[np.arange(int(check.sum())), truth[check]]
        loss = float(np.average(-np.log(np.maximum(said, 1e-12)), weights=weight))
        if loss < least:
            best, least = probe, loss
    assert best is not None
    return best


@dataclass(frozen=True, slots=True)
class Figures:
    """What one model says of the test items; intervals by resampling groups."""

    name: str
    balanced_accuracy: Estimate
    auroc: Estimate

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(name: str, outputs: NDArray[np.float64], truth: NDArray[np.int64], groups: Sequence[str]) -> Figures:
    """Figures of outputs (n, C) for truth (n,) of groups (n,)."""
    return Figures(name, bootstrap(_balanced(outputs, truth), groups), macro_auroc(truth, outputs, groups))


def compare(
    tuned: NDArray[np.float64], frozen: NDArray[np.float64], truth: NDArray[np.int64], groups: Sequence[str]
) -> dict[str, Estimate]:
    """Tuned less frozen, on the same resampled groups: of balanced accuracy and of AUROC."""
    pairs = {"balanced_accuracy": (_balanced(tuned, truth), _balanced(frozen, truth)),
             "auroc": (_ranks(tuned, truth), _ranks(frozen, truth))}  # fmt: skip
    return {name: compare_statistic(first, second, groups).difference for name, (first, second) in pairs.items()}


FEW_GROUPS = 10  # below, percentiles of resampled groups are too narrow (Cameron, Gelbach & Miller, REStat 2008)


def verdict(difference: Estimate, groups: int) -> str:
    """In plain words, what an AUROC's difference on so many groups says of fine-tuning."""
    if difference.value is None or difference.low is None or difference.high is None:
        return f"no gain can be shown: {difference.reason}"
    said = f"AUROC {difference.value:+.3f}, 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    if groups < FEW_GROUPS:
        return f"nothing can be shown on {groups} held-out groups, too few for an interval to be relied on: {said}"
    if difference.low > 0:
        return f"fine-tuning gains on held-out groups: {said}"
    if difference.high < 0:
        return f"fine-tuning is worse than the frozen backbone on held-out groups: {said}"
    return f"no gain is shown on held-out groups: {said}"


def test_part(parts: NDArray[np.int8]) -> NDArray[np.intp]:
    return np.flatnonzero(parts == TEST)


def _balanced(outputs: NDArray[np.float64], truth: NDArray[np.int64]) -> Statistic:
    classes = outputs.shape[1]
    members = np.zeros((len(truth), classes**2))
    members[np.arange(len(truth)), truth * classes + outputs.argmax(axis=1)] = 1
    return lambda weights: balanced_accuracies((weights @ members).reshape(-1, classes, classes))


def _ranks(outputs: NDArray[np.float64], truth: NDArray[np.int64]) -> Statistic:
    return lambda weights: weighted_macro_auroc(truth, outputs, weights)
