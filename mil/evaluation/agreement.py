"""How far called classes agree with the true ones: accuracy, F1, Cohen's kappa, each from one table of counts.

Every figure is a function of the confusion matrix, so a bootstrap over patients needs one matrix per resample and
serves all figures. Kappa: Cohen, Educ Psychol Meas 1960; weighted: Cohen, Psychol Bull 1968.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

from .estimate import RESAMPLES, Estimate, bootstrap_weights

Figure = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Confusion matrices (R, C, C), rows the true class → the figure (R,) of each; nan where it is not defined."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Called against true classes. confusion: rows true class, columns called class; the rest with 95 % intervals.

    balanced_accuracy  mean recall over the classes that have slides
    f1_macro           mean over classes that are true or called somewhere; f1_weighted: by slides of the true class
    kappa_linear, kappa_quadratic  disagreement weighs by the distance of classes in their order, or by its square
    """

    confusion: tuple[tuple[int, ...], ...]
    accuracy: Estimate
    balanced_accuracy: Estimate
    f1_macro: Estimate
    f1_weighted: Estimate
    kappa: Estimate
    kappa_linear: Estimate
    kappa_quadratic: Estimate


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """Confusion matrices of all slides, whole (C, C), and of each resample, drawn (R, C, C); R is 0 where `reason`
    says why nothing can be resampled."""

    whole: NDArray[np.float64]
    drawn: NDArray[np.float64]
    reason: str | None = None

    def estimate(self, figure: Figure) -> Estimate:
        """The figure of all slides with its 95 % percentile interval."""
        value = float(figure(self.whole[None])[0])
        if self.reason is not None and not np.isnan(value):
            return Estimate(value, reason=self.reason)
        return from_draws(value, figure(self.drawn))


def agreement(
    truth: NDArray[np.int64], called: NDArray[np.int64], classes: int, patients: Sequence[str], seed: int = 0
) -> Agreement:
    """Judge called classes: truth, called (n,) class indices in [0, classes); patients (n,).

    Nothing degenerate raises: a figure that cannot be computed is None, with its reason.
    """
    tables = confusion_tables(truth, called, classes, patients, seed)
    return Agreement(
        confusion=tuple(tuple(int(cell) for cell in row) for row in tables.whole),
        accuracy=tables.estimate(accuracies),
        balanced_accuracy=tables.estimate(balanced_accuracies),
        f1_macro=tables.estimate(f1_macros),
        f1_weighted=tables.estimate(f1_weighteds),
        kappa=tables.estimate(kappas),
        kappa_linear=tables.estimate(partial(kappas, power=1)),
        kappa_quadratic=tables.estimate(partial(kappas, power=2)),
    )


def confusion(truth: NDArray[np.int64], called: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts (C, C): rows true class, columns called class. Raises SpecError for a class out of range."""
    return np.bincount(_cells(truth, called, classes), minlength=classes**2).reshape(classes, classes)


def confusion_tables(
    truth: NDArray[np.int64], called: NDArray[np.int64], classes: int, patients: Sequence[str], seed: int = 0
) -> Tables:
    """The confusion matrix, and one for each of RESAMPLES draws of whole patients."""
    cell = _cells(truth, called, classes)
    if len(patients) != len(cell):
        raise SpecError("patients", f"{len(patients)} for {len(cell)} slides", "name one for each")
    whole = np.bincount(cell, minlength=classes**2).reshape(classes, classes).astype(np.float64)
    if len(set(patients)) < 2:
        reason = "a single patient: nothing to resample" if len(cell) else None
        return Tables(whole, np.empty((0, classes, classes)), reason)
    members = np.zeros((len(cell), classes**2))
    members[np.arange(len(cell)), cell] = 1
    drawn = np.concatenate([weights @ members for weights in bootstrap_weights(patients, RESAMPLES, seed)])
    return Tables(whole, drawn.reshape(-1, classes, classes))


def from_draws(value: float, drawn: NDArray[np.float64]) -> Estimate:
    """A figure (nan: not defined) with the 95 % percentile interval of its resamples (R,), those with nan left out.

    Where every resample gives the same, the percentiles would claim certainty: there is no interval, and a reason.
    """
    if np.isnan(value):
        return Estimate(None, reason="it is not defined on these slides")
    valid = drawn[~np.isnan(drawn)]
    if not len(valid) or len(valid) < len(drawn) / 2:
        return Estimate(value, resamples=len(valid), reason="it is not defined in most resamples: too few patients")
    if np.ptp(valid) < 1e-12:
        return Estimate(value, resamples=len(valid), reason="it is the same in every resample: no spread to judge by")
    low, high = np.percentile(valid, [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(valid))


def balanced_accuracy(confusion: NDArray[np.int64]) -> float | None:
    """Mean recall over the classes that have slides; None without any."""
    value = balanced_accuracies(np.asarray(confusion, np.float64)[None])[0]
    return None if np.isnan(value) else float(value)


def accuracies(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of slides called right."""
    return _ratio(np.trace(tables, axis1=1, axis2=2), tables.sum(axis=(1, 2)))


def balanced_accuracies(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean recall over the classes that have slides."""
    totals, right = tables.sum(axis=2), np.diagonal(tables, axis1=1, axis2=2)
    recall = np.divide(right, totals, out=np.zeros_like(totals), where=totals > 0)
    return _ratio(recall.sum(axis=1), (totals > 0).sum(axis=1))


def f1_macros(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean F1 over classes that are true or called somewhere."""
    f1, seen = _f1(tables)
    return _ratio((f1 * (seen > 0)).sum(axis=1), (seen > 0).sum(axis=1))


def f1_weighteds(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean F1, each class by its share of slides."""
    totals = tables.sum(axis=2)
    return _ratio((_f1(tables)[0] * totals).sum(axis=1), totals.sum(axis=1))


def kappas(tables: NDArray[np.float64], power: int = 0) -> NDArray[np.float64]:
    """Cohen's kappa; disagreement weighs |i - j| ** power (0: all alike, 1: linear, 2: quadratic).

    nan where chance alone leaves no disagreement: all slides are of one class and called so.
    """
    step = np.abs(np.subtract.outer(np.arange(tables.shape[1]), np.arange(tables.shape[1]))).astype(np.float64)
    penalty = (step > 0).astype(np.float64) if power == 0 else step**power
    expected = np.einsum("ri,rj->rij", tables.sum(axis=2), tables.sum(axis=1))
    expected /= np.maximum(tables.sum(axis=(1, 2)), 1e-300)[:, None, None]
    return 1 - _ratio((tables * penalty).sum(axis=(1, 2)), (expected * penalty).sum(axis=(1, 2)))


def _f1(tables: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F1 of each class (R, C), 0 where it is neither true nor called, and how often it is either (R, C)."""
    seen = tables.sum(axis=2) + tables.sum(axis=1)
    right = np.diagonal(tables, axis1=1, axis2=2)
    return np.divide(2 * right, seen, out=np.zeros_like(seen), where=seen > 0), seen


def _ratio(above: NDArray[np.generic], below: NDArray[np.generic]) -> NDArray[np.float64]:
    part, whole = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _cells(truth: NDArray[np.int64], called: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Index of each slide's cell in the flattened matrix (n,)."""
    truth, called = np.asarray(truth, np.int64), np.asarray(called, np.int64)
    if truth.shape != called.shape:
        raise SpecError("classes", f"{truth.shape} true ones, {called.shape} called ones", "give one of each per slide")
    if len(truth) and (min(truth.min(), called.min()) < 0 or max(truth.max(), called.max()) >= classes):
        raise SpecError("classes", f"an index lies outside 0 to {classes - 1}", "number classes from 0")
    return truth * classes + called
