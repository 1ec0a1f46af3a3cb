"""Does the model serve every group alike? Figures by the values of a manifest column, with multiplicity stated.

Each group is held against all other slides whose value is known. A group is a mask on the weights of the resamples,
so one bootstrap over patients serves all groups and any figure, and a patient with slides in two groups is counted as
one. The p values of all groups, figures and columns of one call are adjusted together (Holm, Scand J Stat 1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .agreement import from_draws, kappas
from .compare import p_two_sided
from .discrimination import weighted_auroc, weighted_macro_auroc
from .estimate import Estimate, Statistic, bootstrap_weights
from .operating import proportion
from .predictions import Predictions

FEWEST = 10  # patients below which a group is counted but not judged
DISTINCT = 6  # a column of more distinct numbers than this is cut into bands
UNKNOWN = frozenset({"", "na", "n/a", "nan", "none", "null", "unknown"})


@dataclass(frozen=True, slots=True)
class GroupFigure:
    """One figure of a group, and its difference to the rest (group - rest), both with 95 % intervals.

    p is two-sided, from the bootstrap; p_holm is adjusted for all tests of the call.
    """

    estimate: Estimate
    difference: Estimate
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """One group. prevalence: share of positive slides, of binary tasks; reason: why it is not judged, or None."""

    name: str
    slides: int
    patients: int
    prevalence: float | None
    figures: Mapping[str, GroupFigure]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Subgroups:
    """Groups of each column. unknown: slides of each column without a value, in no group and no rest.

    tests      how many differences were tested, all adjusted together
    threshold  the one at which all groups' sensitivity and specificity hold; None where there are none
    """

    groups: Mapping[str, tuple[Group, ...]]
    unknown: Mapping[str, int]
    tests: int
    threshold: float | None


def subgroups(
    predictions: Predictions,
    columns: Sequence[str] | None = None,
    threshold: float = 0.5,
    edges: Mapping[str, Sequence[float]] | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    seed: int = 0,
) -> Subgroups:
    """Judge the groups of the given columns, of all by default.

    threshold   on the positive class's output, for sensitivity and specificity of binary classification
    edges       where to cut a column of numbers: column → rising values; [50, 70] gives <50, 50 to <70, >=70.
                Without them a column of more than DISTINCT distinct numbers is cut at its patients' quartiles
    statistics  name → Statistic over the slides of `predictions`. By default AUROC (of the positive class, or macro
                one-versus-rest; of labels: macro) with sensitivity and specificity of binary tasks, and quadratic
                kappa of ordinal ones; other tasks have no default

    A group, or its rest, of fewer than FEWEST patients is counted but not judged. Two groups that are each other's
    rest are one test. Raises SpecError for an unknown column or a task without statistics.
    """
    columns = tuple(predictions.columns) if columns is None else tuple(columns)
    binary = predictions.task == "classification" and len(predictions.classes) == 2
    chosen = dict(statistics) if statistics is not None else _defaults(predictions, threshold)
    masks, unknown = {}, {}
    for column in columns:
        masks[column] = _groups(predictions, column, (edges or {}).get(column))
        unknown[column] = len(predictions) - int(sum(mask.sum() for mask in masks[column].values()))
    draws = _Draws(predictions, chosen, masks, seed)
    found = {
        column: tuple(_judge(predictions, draws, column, name, binary) for name in groups)
        for column, groups in masks.items()
    }
    if binary and statistics is None:
        found = {column: _with_shares(predictions, masks[column], found[column], threshold) for column in found}
    adjusted, tests = _holm(found)
    return Subgroups(adjusted, unknown, tests, threshold if binary and statistics is None else None)


class _Draws:
    """Figures of each group and its rest, of all slides and of each resample."""

    def __init__(
        self,
        predictions: Predictions,
        statistics: Mapping[str, Statistic],
        masks: Mapping[str, Mapping[str, NDArray[np.bool_]]],
        seed: int,
    ):
        self.masks, self.statistics = masks, statistics
        self.patients = np.asarray(predictions.patients, dtype=str)
        self.rests = {
            column: {
                name: np.any([m for n, m in groups.items() if n != name], axis=0) & ~groups[name] for name in groups
            }
            for column, groups in masks.items()
            if len(groups) > 1
        }
        once = np.ones((1, len(predictions)))
        self.whole = self._figures(once)
        rows = bootstrap_weights(predictions.patients, seed=seed) if len(predictions) else ()
        blocks = [self._figures(weights) for weights in rows]
        self.drawn = {key: np.concatenate([block[key] for block in blocks]) for key in self.whole}

    def reason(self, column: str, name: str) -> str | None:
        """Why a group is not judged, or None."""
        count = len(set(self.patients[self.masks[column][name]]))
        return f"{count} patient(s), fewer than {FEWEST}: counted, not judged" if count < FEWEST else None

    def rest_reason(self, column: str, name: str) -> str | None:
        """Why a judged group has no difference to its rest, or None."""
        if column not in self.rests:
            return "there is no other group"
        count = len(set(self.patients[self.rests[column][name]]))
        return f"the rest has {count} patient(s), fewer than {FEWEST}" if count < FEWEST else None

    def _figures(self, weights: NDArray[np.float64]) -> dict[tuple[str, str, str, bool], NDArray[np.float64]]:
        """(column, group, figure, whether of its rest) → the figure (R,)."""
        found = {}
        for column, groups in self.masks.items():
            for name, mask in groups.items():
                if self.reason(column, name) is not None:
                    continue
                for figure, statistic in self.statistics.items():
                    found[column, name, figure, False] = statistic(weights * mask)
                    if self.rest_reason(column, name) is None:
                        found[column, name, figure, True] = statistic(weights * self.rests[column][name])
        return found


def _judge(predictions: Predictions, draws: _Draws, column: str, name: str, binary: bool) -> Group:
    mask = draws.masks[column][name]
    reason, figures = draws.reason(column, name), {}
    for figure in draws.statistics if reason is None else ():
        own, rest = (column, name, figure, False), (column, name, figure, True)
        value, drawn = float(draws.whole[own][0]), draws.drawn[own]
        missing = draws.rest_reason(column, name)
        if missing is not None:
            difference, p = Estimate(None, reason=missing), None
        else:
            apart = drawn - draws.drawn[rest]
            difference = from_draws(value - float(draws.whole[rest][0]), apart)
            p = None if difference.low is None else p_two_sided(apart)
        figures[figure] = GroupFigure(from_draws(value, drawn), difference, p)
    return Group(
        name=name,
        slides=int(mask.sum()),
        patients=len(set(draws.patients[mask])),
        prevalence=float((predictions.truth[mask] == 1).mean()) if binary else None,
        figures=figures,
        reason=reason,
    )


def _with_shares(
    predictions: Predictions, masks: Mapping[str, NDArray[np.bool_]], groups: tuple[Group, ...], threshold: float
) -> tuple[Group, ...]:
    """Sensitivity and specificity with the interval of a share, which holds at 0 and 1 too."""
    positive, called = predictions.truth == 1, predictions.outputs[:, 1] >= threshold
    changed = []
    for group in groups:
        mask, figures = masks[group.name], dict(group.figures)
        for figure, hit, kind in (("sensitivity", called, positive), ("specificity", ~called, ~positive)):
            if figure in figures:
                estimate = proportion(hit, kind & mask, predictions.patients)
                figures[figure] = replace(figures[figure], estimate=estimate)
        changed.append(replace(group, figures=figures))
    return tuple(changed)


def _holm(found: Mapping[str, tuple[Group, ...]]) -> tuple[dict[str, tuple[Group, ...]], int]:
    """The same groups with adjusted p values, and the number of tests. Of two groups one test serves both."""
    tested = [
        (column, groups.index(group), figure)
        for column, groups in found.items()
        for group in (groups[:1] if len(groups) == 2 else groups)
        for figure, judged in group.figures.items()
        if judged.p is not None
    ]
    p = {key: float(found[key[0]][key[1]].figures[key[2]].p or 0) for key in tested}
    adjusted = {}
    if tested:
        from statsmodels.stats.multitest import multipletests

        adjusted = dict(zip(tested, multipletests(list(p.values()), method="holm")[1].tolist(), strict=True))
    result = {}
    for column, groups in found.items():
        changed = []
        for i, group in enumerate(groups):
            source = 0 if len(groups) == 2 else i
            figures = {
                figure: replace(
                    judged, p=p.get((column, source, figure)), p_holm=adjusted.get((column, source, figure))
                )
                for figure, judged in group.figures.items()
            }
            changed.append(replace(group, figures=figures))
        result[column] = tuple(changed)
    return result, len(tested)


def _groups(predictions: Predictions, column: str, edges: Sequence[float] | None) -> dict[str, NDArray[np.bool_]]:
    """Name of each group → its slides (n,) bool, in order."""
    if column not in predictions.columns:
        known = ", ".join(predictions.columns) or "none"
        raise SpecError("subgroups", f"there is no column {column!r}", f"choose among: {known}")
    texts = np.array([text.strip() for text in predictions.columns[column]], dtype=object)
    known_ = np.array([text.lower() not in UNKNOWN for text in texts], bool)
    numbers = _numbers(texts, known_)
    if numbers is None:
        if edges is not None:
            raise SpecError("edges", f"column {column!r} holds texts", "give edges for columns of numbers only")
        return {str(name): np.asarray(texts == name) for name in sorted(set(texts[known_]))}
    if edges is None and len(set(numbers[known_])) <= DISTINCT:
        return {f"{value:g}": known_ & (numbers == value) for value in sorted(set(numbers[known_]))}
    if edges is None:
        seen = {(patient, value) for patient, value in zip(predictions.patients, numbers, strict=True)}
        edges = np.unique(np.quantile([value for _, value in seen if np.isfinite(value)], [0.25, 0.5, 0.75])).tolist()
    if list(edges) != sorted(set(edges)) or not len(edges) or not np.isfinite(edges).all():
        raise SpecError("edges", f"{list(edges)} for column {column!r}", "give finite numbers, each above the last")
    bounds = [-np.inf, *edges, np.inf]
    bands = {}
    for low, high in pairwise(bounds):
        mask = known_ & (numbers >= low) & (numbers < high)
        if mask.any():
            bands[f"<{high:g}" if low == -np.inf else f">={low:g}" if high == np.inf else f"{low:g} to <{high:g}"] = (
                mask
            )
    return bands


def _numbers(texts: NDArray[np.object_], known: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """The column as numbers, nan where unknown; None when it holds texts, or nothing."""
    values = np.full(len(texts), np.nan)
    try:
        values[known] = [float(text) for text in texts[known]]
    except ValueError:
        return None
    return values if known.any() and np.isfinite(values[known]).all() else None


def _defaults(predictions: Predictions, threshold: float) -> dict[str, Statistic]:
    truth, outputs = predictions.truth, predictions.outputs
    if predictions.task == "multilabel":
        labels = range(outputs.shape[1])
        return {
            "AUROC": lambda w: np.asarray(
                np.mean([weighted_auroc(truth[:, c] == 1, outputs[:, c], w) for c in labels], axis=0)
            )
        }
    if predictions.task == "ordinal":
        classes = outputs.shape[1]
        cells = np.eye(classes**2)[truth.astype(np.int64) * classes + outputs.argmax(axis=1)]
        return {"quadratic kappa": lambda w: kappas((w @ cells).reshape(-1, classes, classes), power=2)}
    if predictions.task != "classification":
        raise SpecError("subgroups", f"{predictions.task} has no default figure", "hand in `statistics`")
    if outputs.shape[1] != 2:
        return {"AUROC": lambda w: weighted_macro_auroc(truth.astype(np.int64), outputs, w)}
    positive, called = truth == 1, outputs[:, 1] >= threshold
    return {
        "AUROC": lambda w: weighted_auroc(positive, outputs[:, 1], w),
        "sensitivity": lambda w: _share(w, called, positive),
        "specificity": lambda w: _share(w, ~called, ~positive),
    }


def _share(weights: NDArray[np.float64], hit: NDArray[np.bool_], kind: NDArray[np.bool_]) -> NDArray[np.float64]:
    whole = weights @ kind.astype(np.float64)
    part = weights @ (hit & kind).astype(np.float64)
    return np.divide(part, whole, out=np.full(len(weights), np.nan), where=whole > 0)
