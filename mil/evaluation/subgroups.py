"""Does the model serve every group alike? Figures by the values of a manifest column, with multiplicity stated.

Each group is held against all other slides whose value is known. A group is a mask on the weights of the resamples,
so one bootstrap over patients serves all groups and any figure, and a patient with slides in two groups is counted as
one. Whether a group differs is a permutation test over patients: in a small group where nothing goes wrong resamples
show no spread, and p values from them would find differences that are not there. The p values of all groups, figures
and columns of one call are adjusted together (Holm, Scand J Stat 1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .agreement import from_draws, kappas
from .compare import p_permuted, shuffled_groups
from .discrimination import weighted_auroc, weighted_macro_auroc
from .estimate import Estimate, Statistic, bootstrap_weights
from .operating import proportion
from .predictions import Predictions

FEWEST = 10  # patients below which a group is counted but not judged
DISTINCT = 6  # a column of more distinct numbers than this is cut into bands
_Masks = Mapping[str, Mapping[str, NDArray[np.bool_]]]  # column → group → its slides (n,)
UNKNOWN = frozenset({"", "na", "n/a", "nan", "none", "null", "unknown"})


@dataclass(frozen=True, slots=True)
class GroupFigure:
    """One figure of a group, and its difference to the rest (group - rest), both with 95 % intervals.

    p is two-sided, by permutation within the true classes; p_holm is adjusted for all tests of the call.
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
    threshold  the one at which all groups' sensitivity and specificity hold; None without, or where slides differ in it
    """

    groups: Mapping[str, tuple[Group, ...]]
    unknown: Mapping[str, int]
    tests: int
    threshold: float | None


def subgroups(
    predictions: Predictions,
    columns: Sequence[str] | None = None,
    threshold: float | NDArray[np.float64] = 0.5,
    edges: Mapping[str, Sequence[float]] | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    seed: int = 0,
) -> Subgroups:
    """Judge the groups of the given columns, of all by default.

    threshold   on the positive class's output, for sensitivity and specificity of binary classification: one, or one
                for each slide (n,), as of its fold; a slide whose threshold is nan counts in neither
    edges       where to cut a column of numbers: column → rising values; [50, 70] gives <50, 50 to <70, >=70.
                Without them a column of more than DISTINCT distinct numbers is cut at its patients' quartiles
    statistics  name → Statistic over the slides of `predictions`. By default AUROC (of the positive class, or macro
                one-versus-rest; of labels: mean over those that some slides have and some have not) with sensitivity
                and specificity of binary tasks, and quadratic kappa of ordinal ones; other tasks have no default

    A group, or its rest, of fewer than FEWEST patients is counted but not judged. Two groups that are each other's
    rest are one test. Raises SpecError for an unknown column or a task without statistics.
    """
    columns = tuple(predictions.columns) if columns is None else tuple(columns)
    binary = predictions.task == "classification" and len(predictions.classes) == 2
    cuts = np.broadcast_to(np.asarray(threshold, np.float64), (len(predictions),))
    chosen = dict(statistics) if statistics is not None else _defaults(predictions, cuts)
    masks: dict[str, dict[str, NDArray[np.bool_]]] = {}
    unknown = {}
    for column in columns:
        masks[column] = _groups(predictions, column, (edges or {}).get(column))
        unknown[column] = len(predictions) - int(sum(mask.sum() for mask in masks[column].values()))
    draws = _Draws(predictions, chosen, masks, seed)
    found = {
        column: tuple(_judge(predictions, draws, column, name, binary) for name in groups)
        for column, groups in masks.items()
    }
    if binary and statistics is None:
        found = {
            column: tuple(_with_shares(predictions, masks, column, group, cuts) for group in groups)
            for column, groups in found.items()
        }
    adjusted, tests = _holm(found)
    own = np.unique(cuts[~np.isnan(cuts)]).tolist() if binary and statistics is None else []
    return Subgroups(adjusted, unknown, tests, own[0] if len(own) == 1 else None)


class _Draws:
    """Figures of each group and its rest: of all slides, of each resample, and of groups dealt anew."""

    def __init__(self, predictions: Predictions, statistics: Mapping[str, Statistic], masks: _Masks, seed: int):
        self.masks, self.statistics = masks, statistics
        self.patients = np.asarray(predictions.patients, dtype=str)
        self.groups = {column: np.full(len(predictions), -1) for column in masks}  # (n,) the group's place, -1 unknown
        for column, groups in masks.items():
            for place, mask in enumerate(groups.values()):
                self.groups[column][mask] = place
        self.reasons = {
            (column, name): self._reasons(column, name) for column, groups in masks.items() for name in groups
        }
        once = np.ones((1, len(predictions)))
        self.whole, self.drawn, self.dealt = self._figures(once, self.groups), _Stack(), _Stack()
        if not len(predictions):
            return
        for weights in bootstrap_weights(predictions.patients, seed=seed):
            self.drawn.add(self._figures(weights, self.groups))
        known = predictions.task in ("classification", "ordinal")
        kinds = predictions.truth.astype(np.int64) if known else np.zeros(len(predictions), np.int64)
        for column in masks:
            for dealt in shuffled_groups(self.groups[column], predictions.patients, kinds, seed):
                self.dealt.add(self._figures(once, {column: dealt}))

    def _reasons(self, column: str, name: str) -> tuple[str | None, str | None]:
        """Why a group is not judged, and why it is not held against its rest; None where it is."""
        mask = self.masks[column][name]
        count, rest = (len(set(self.patients[part])) for part in (mask, (self.groups[column] >= 0) & ~mask))
        few = f"{count} patient(s), fewer than {FEWEST}: counted, not judged" if count < FEWEST else None
        if len(self.masks[column]) == 1:
            return few, "there is no other group"
        return few, f"the rest has {rest} patient(s), fewer than {FEWEST}" if rest < FEWEST else None

    def _figures(
        self, weights: NDArray[np.float64], groups: Mapping[str, NDArray[np.int64]]
    ) -> dict[tuple[str, str, str, bool], NDArray[np.float64]]:
        """(column, group, figure, whether of its rest) → the figure (R,). weights and groups (R or 1, n)."""
        found = {}
        for column, of in groups.items():
            for place, name in enumerate(self.masks[column]):
                alone, against = self.reasons[column, name]
                for figure, statistic in self.statistics.items() if alone is None else ():
                    found[column, name, figure, False] = statistic(weights * (of == place))
                    if against is None:
                        found[column, name, figure, True] = statistic(weights * ((of >= 0) & (of != place)))
        return found


class _Stack:
    """Figures of many rows, collected block by block."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, str, str, bool], list[NDArray[np.float64]]] = {}

    def add(self, figures: Mapping[tuple[str, str, str, bool], NDArray[np.float64]]) -> None:
        for key, values in figures.items():
            self._blocks.setdefault(key, []).append(values)

    def __getitem__(self, key: tuple[str, str, str, bool]) -> NDArray[np.float64]:
        return np.concatenate(self._blocks[key])


def _judge(predictions: Predictions, draws: _Draws, column: str, name: str, binary: bool) -> Group:
    mask = draws.masks[column][name]
    (reason, against), figures = draws.reasons[column, name], {}
    for figure in draws.statistics if reason is None else ():
        own, rest = (column, name, figure, False), (column, name, figure, True)
        value, drawn = float(draws.whole[own][0]), draws.drawn[own]
        if against is not None:
            difference, p = Estimate(None, reason=against), None
        else:
            apart = value - float(draws.whole[rest][0])
            difference = from_draws(apart, drawn - draws.drawn[rest])
            p = p_permuted(apart, draws.dealt[own] - draws.dealt[rest])
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
    predictions: Predictions, masks: _Masks, column: str, group: Group, cuts: NDArray[np.float64]
) -> Group:
    """Sensitivity and specificity with intervals that hold at 0 and 1 too, where a resample shows no spread.

    The difference's is put together from those of the two shares (Newcombe, Stat Med 1998, method 10; for clusters
    Zou & Donner, Stat Med 2008) unless a patient has slides in both.
    """
    positive, called, decided = predictions.truth == 1, predictions.outputs[:, 1] >= cuts, ~np.isnan(cuts)
    mask, figures = masks[column][group.name], dict(group.figures)
    rest = np.any([other for other in masks[column].values()], axis=0) & ~mask
    names = np.asarray(predictions.patients, dtype=str)
    shared = set(names[mask]) & set(names[rest])
    for figure, hit, kind in (
        ("sensitivity", called, positive & decided),
        ("specificity", ~called, ~positive & decided),
    ):
        judged = figures.get(figure)
        if judged is None:
            continue
        own = proportion(hit, kind & mask, predictions.patients)
        difference = judged.difference
        if difference.value is not None and not shared:
            difference = _apart(own, proportion(hit, kind & rest, predictions.patients))
        figures[figure] = replace(judged, estimate=own, difference=difference)
    return replace(group, figures=figures)


def _apart(one: Estimate, other: Estimate) -> Estimate:
    """Difference of two independent shares from their intervals."""
    values = (one.value, one.low, one.high, other.value, other.low, other.high)
    if None in values:
        return Estimate(None, reason="one of the two shares has no interval")
    a, a_low, a_high, b, b_low, b_high = (float(v or 0) for v in values)
    low, high = np.hypot(a - a_low, b_high - b), np.hypot(a_high - a, b - b_low)
    return Estimate(a - b, a - b - float(low), a - b + float(high))


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


def _defaults(predictions: Predictions, cuts: NDArray[np.float64]) -> dict[str, Statistic]:
    truth, outputs, score = predictions.truth, predictions.outputs, predictions.ranking
    if predictions.task == "multilabel":
        labels = [c for c in range(outputs.shape[1]) if 0 < int((truth[:, c] == 1).sum()) < len(truth)]
        if not labels:  # nothing can be ranked: the figure is there, and is not defined
            return {"AUROC": lambda w: np.full(len(w), np.nan)}
        return {
            "AUROC": lambda w: np.asarray(
                np.mean([weighted_auroc(truth[:, c] == 1, score[:, c], w) for c in labels], axis=0)
            )
        }
    if predictions.task == "ordinal":
        classes = outputs.shape[1]
        cells = np.eye(classes**2)[truth.astype(np.int64) * classes + outputs.argmax(axis=1)]
        return {"quadratic kappa": lambda w: kappas((w @ cells).reshape(-1, classes, classes), power=2)}
    if predictions.task != "classification":
        raise SpecError("subgroups", f"{predictions.task} has no default figure", "hand in `statistics`")
    if outputs.shape[1] != 2:
        return {"AUROC": lambda w: weighted_macro_auroc(truth.astype(np.int64), score, w)}
    positive, called, decided = truth == 1, outputs[:, 1] >= cuts, ~np.isnan(cuts)
    return {
        "AUROC": lambda w: weighted_auroc(positive, score[:, 1], w),
        "sensitivity": lambda w: _share(w, called, positive & decided),
        "specificity": lambda w: _share(w, ~called, ~positive & decided),
    }


def _share(weights: NDArray[np.float64], hit: NDArray[np.bool_], kind: NDArray[np.bool_]) -> NDArray[np.float64]:
    whole = weights @ kind.astype(np.float64)
    part = weights @ (hit & kind).astype(np.float64)
    return np.divide(part, whole, out=np.full(len(weights), np.nan), where=whole > 0)
