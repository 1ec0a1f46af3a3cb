"""From logits to probabilities: maps with a few parameters, fitted on bags that the model was not trained on.

Temperature scaling (Guo, Pleiss, Sun & Weinberger, ICML 2017) keeps every ranking and needs few bags, but has no
intercept: a prior that class weights have moved stays moved. Platt scaling (Platt 1999, with his smoothed targets; for
several classes bias-corrected temperature scaling with the same smoothing: one temperature and a bias for each class,
Alexandari, Kundaje & Shrikumar, ICML 2020) mends the prior too; isotonic regression (Zadrozny & Elkan, KDD 2002) mends
any monotone distortion and needs hundreds of bags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SpecError

METHODS = ("temperature", "platt", "isotonic", "none")
KINDS = ("softmax", "sigmoid")
_LOG_TEMPERATURE = (-4.0, 4.0)  # T in [0.018, 55]: beyond, a bag more or less decides
_SURE = 30.0  # a logit that much above the others leaves them 1e-13; while fitting, more counts as this


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A fitted map from logits to probabilities, plain values only.

    method      one of METHODS
    kind        softmax: classes exclude each other, rows sum to 1; sigmoid: every column is a label by itself
    columns     C, how many logits a bag has
    parameters  temperature  {"temperature": [T]}, one for each label if sigmoid
                platt        {"slope", "intercept"}: one number each for two classes (of the last's logit less the
                             first's); one slope and C intercepts for more; C of both for labels. No slope is
                             negative: see `flat`
                isotonic     {"score": lists, "probability": lists}, knots of one step function for two classes (over
                             the same difference), of C for more (over softmax) or for labels (over the logit)
    """

    method: str
    kind: str
    columns: int
    parameters: Mapping[str, Any]

    @property
    def flat(self) -> bool:
        """Whether Platt's slope is 0, of any label: the bags it was fitted on were ranked the wrong way round, so that
        every bag gets their shares."""
        return self.method == "platt" and 0.0 in self.parameters["slope"]

    def apply(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities (n, C) of logits (n, C). Raises SpecError when C is another than was fitted, or for NaN."""
        z = _checked(logits, self.kind)
        if z.shape[1] != self.columns:
            raise SpecError("logits", f"{z.shape[1]} columns, calibrated for {self.columns}", "use the model's own")
        if self.method == "none":
            return _link(z, self.kind)
        if self.method == "temperature":
            return _link(z / np.asarray(self.parameters["temperature"], np.float64), self.kind)
        if self.method == "platt":
            slope, intercept = (np.asarray(self.parameters[key], np.float64) for key in ("slope", "intercept"))
            return _link(_scores(z, self.kind, "platt") * slope + intercept, self.kind)
        scores = _scores(z, self.kind, "isotonic")
        knots = zip(scores.T, self.parameters["score"], self.parameters["probability"], strict=True)
        steps = np.stack([np.interp(column, x, y) for column, x, y in knots], axis=1)
        if self.kind == "sigmoid":
            return steps
        return np.hstack([1 - steps, steps]) if steps.shape[1] == 1 else steps / steps.sum(axis=1, keepdims=True)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        given = {"method": self.method, "kind": self.kind, "columns": self.columns}
        return {**given, "parameters": dict(self.parameters)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibrator":
        """What as_dict gave. Raises SpecError when a field is missing or its value is none of the choices."""
        missing = {"method", "kind", "columns", "parameters"} - set(values)
        if missing:
            raise SpecError("calibrator", f"it has no {', '.join(sorted(missing))}", "fit it again")
        _known(values["method"], values["kind"])
        return cls(values["method"], values["kind"], int(values["columns"]), dict(values["parameters"]))


def fit_calibrator(
    logits: NDArray[np.floating],
    truth: NDArray[np.integer],
    method: str,
    weights: NDArray[np.floating] | None = None,
    kind: str = "softmax",
) -> Calibrator:
    """Fit on held-out bags: logits (n, C); truth (n,) class index, or (n, C) of 0 and 1 if kind is sigmoid.

    weights (n,), not negative, 1 if None. Logits more than 30 apart count as 30 apart, so that a bag or two with wild
    ones does not decide for all; what is fitted is applied to logits as they are. A temperature is the minimum of the
    negative log-likelihood with T in [0.018, 55]; where every bag is right the likelihood grows for ever as T falls,
    so it says nothing of T, which stays 1. Isotonic probabilities are clipped to [1 / (n + 2), 1 - 1 / (n + 2)], n the
    sum of weights: they are never 0 or 1, for no number of bags proves either. Platt's slope is at least 0: a ranking
    that looks reversed in a small cohort is none to be turned round, and slope 0 gives every bag the shares of the
    classes. Raises SpecError when shapes do not fit, for NaN, and for Platt and isotonic when a class or label has no
    bag on one side.
    """
    _known(method, kind)
    z = _checked(logits, kind)
    targets = _targets(truth, z.shape, kind)
    weight = np.ones(len(z)) if weights is None else np.asarray(weights, np.float64)
    if weight.shape != (len(z),) or not (weight >= 0).all():
        raise SpecError("weights", f"shape {weight.shape} or a negative one for {len(z)} bags", "give one for each")
    z, targets, weight = _tamed(z[weight > 0], kind), targets[weight > 0], weight[weight > 0]
    if method == "none":
        return Calibrator(method, kind, z.shape[1], {})
    if not len(z):
        raise SpecError("calibration", "there are no held-out bags", "hold some back, or calibrate with 'none'")
    if method == "temperature":
        parts = [np.s_[:]] if kind == "softmax" else [np.s_[c : c + 1] for c in range(z.shape[1])]
        found = [_temperature(z[:, part], targets[:, part], weight, kind) for part in parts]
        return Calibrator(method, kind, z.shape[1], {"temperature": found})
    for c in np.flatnonzero((targets.max(axis=0) < 1) | (targets.min(axis=0) > 0)):
        where = "label" if kind == "sigmoid" else "class"
        problem = f"{where} {c} has no bag, or no other has one, among the {len(z)} it is fitted on"
        raise SpecError("calibration", problem, "use temperature, fewer folds, or more patients")
    scores = _scores(z, kind, method)
    if method == "platt":
        return Calibrator(method, kind, z.shape[1], _platt(scores, targets, weight, kind))
    return Calibrator(method, kind, z.shape[1], _isotonic(scores, targets[:, -scores.shape[1] :], weight))


def cross_calibrated(
    logits: NDArray[np.floating],
    truth: NDArray[np.integer],
    folds: Sequence[int] | NDArray[np.integer],
    method: str,
    kind: str = "softmax",
) -> NDArray[np.float64]:
    """Probabilities (n, C) of out-of-fold logits (n, C), each fold's by a calibrator fitted on the other folds.

    So no bag is judged by a map that was fitted on it. `folds` (n,) must not divide a patient. Raises as
    fit_calibrator does, and SpecError for a single fold.
    """
    fold = np.asarray(folds)
    if fold.shape != (len(logits),) or len(np.unique(fold)) < 2:
        raise SpecError("folds", f"{len(np.unique(fold))} fold(s) for {len(logits)} bags", "give two or more")
    _known(method, kind)
    z, truth = _checked(logits, kind), np.asarray(truth)
    out = np.empty_like(z)
    for k in np.unique(fold):
        out[fold == k] = fit_calibrator(z[fold != k], truth[fold != k], method, kind=kind).apply(z[fold == k])
    return out


def feasible_method(
    method: str,
    truth: NDArray[np.integer],
    classes: int,
    folds: Sequence[int] | NDArray[np.integer] | None = None,
) -> str:
    """The method, or what it falls back to where bags are too few: platt, isotonic → temperature → none.

    truth (n,) class index in [0, classes), or (n, classes) of 0 and 1 for labels. What it can be fitted on is asked of
    all bags and, with `folds` (n,), of those outside each fold, as `cross_calibrated` does; one fold asks of all alone.
    Platt and isotonic need every class, and of a label bags with and without it; a temperature two classes, and of
    labels the same: one-sided bags would drive it to its bounds.
    """
    y = np.asarray(truth)
    parts = [y]
    if folds is not None and len(np.unique(folds)) > 1:
        parts += [y[np.asarray(folds) != k] for k in np.unique(folds)]
    if y.ndim == 2:
        both = all(len(part) and (part.any(axis=0) & ~part.all(axis=0)).all() for part in parts)
        return method if both else "none"
    least = min(len(np.unique(part)) for part in parts)
    if least < 2:
        return "none"
    return method if least == classes or method in ("temperature", "none") else "temperature"


def as_logits(outputs: NDArray[np.floating], kind: str = "softmax") -> NDArray[np.float64]:
    """Logits (n, C) whose softmax (or sigmoid) is `outputs` (n, C) in [0, 1]; 0 and 1 are taken as 1e-12 from them."""
    p = np.clip(np.asarray(outputs, np.float64), 1e-12, 1 - 1e-12)
    return np.log(p) if kind == "softmax" else np.log(p) - np.log1p(-p)


def _known(method: str, kind: str) -> None:
    if method not in METHODS:
        raise SpecError("calibration", f"{method!r} is unknown", f"choose one of {', '.join(METHODS)}")
    if kind not in KINDS:
        raise SpecError("calibration", f"kind {kind!r} is unknown", f"choose one of {', '.join(KINDS)}")


def _checked(logits: NDArray[np.floating], kind: str) -> NDArray[np.float64]:
    z = np.asarray(logits, np.float64)
    if z.ndim != 2 or z.shape[1] < (2 if kind == "softmax" else 1):
        raise SpecError("logits", f"shape {z.shape}", "give (bags, classes), two classes or more if they exclude")
    if not np.isfinite(z).all():
        raise SpecError("logits", "they hold NaN or infinity", "leave out bags without a prediction")
    return z


def _targets(truth: NDArray[np.integer], shape: tuple[int, ...], kind: str) -> NDArray[np.float64]:
    """0 and 1, (n, C)."""
    given = np.asarray(truth)
    wanted = shape if kind == "sigmoid" else shape[:1]
    top = 1 if kind == "sigmoid" else shape[1] - 1
    if given.shape != wanted or not np.isin(given, np.arange(top + 1)).all():
        raise SpecError("truth", f"shape {given.shape} for logits {shape}", f"give {wanted} whole numbers, 0 to {top}")
    return given.astype(np.float64) if kind == "sigmoid" else np.eye(shape[1])[given.astype(int)]


def _tamed(z: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """Logits (n, C) with no more than _SURE between a row's largest and any other, or from 0 for labels."""
    if kind == "sigmoid":
        return np.clip(z, -_SURE, _SURE)
    return np.maximum(z - z.max(axis=1, keepdims=True), -_SURE)


def _scores(z: NDArray[np.float64], kind: str, method: str) -> NDArray[np.float64]:
    """What Platt and isotonic map, (n, 1) for two classes, else (n, C)."""
    if kind == "softmax" and z.shape[1] == 2:
        return z[:, 1:] - z[:, :1]
    return _link(z, kind) if kind == "softmax" and method == "isotonic" else z


def _link(z: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """Softmax of (n, C), of (n, 1) as the last of two classes; or sigmoid of each column."""
    from scipy.special import expit, softmax

    if kind == "sigmoid":
        return expit(z)
    return np.hstack([expit(-z), expit(z)]) if z.shape[1] == 1 else softmax(z, axis=1)


def _loss(z: NDArray[np.float64], targets: NDArray[np.float64], weight: NDArray[np.float64], kind: str) -> float:
    """Weighted mean negative log-likelihood in nats; targets as z, their softmax rows sum to 1."""
    if kind == "sigmoid" or z.shape[1] == 1:
        rows = (np.logaddexp(0, z) - targets[:, -z.shape[1] :] * z).sum(axis=1)
    else:
        rows = np.logaddexp.reduce(z, axis=1) - (targets * z).sum(axis=1)
    return float(weight @ rows / weight.sum())


def _temperature(z: NDArray[np.float64], targets: NDArray[np.float64], weight: NDArray[np.float64], kind: str) -> float:
    from scipy.optimize import minimize_scalar

    of_truth = np.where(targets > 0, z, -z) if kind == "sigmoid" else (targets * z).sum(axis=1, keepdims=True) - z
    if (of_truth >= 0).all():  # no bag is wrong
        return 1.0
    found = minimize_scalar(
        lambda log_t: _loss(z / np.exp(log_t), targets, weight, kind),
        bounds=_LOG_TEMPERATURE,
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(np.exp(found.x))


def _platt(
    scores: NDArray[np.float64], targets: NDArray[np.float64], weight: NDArray[np.float64], kind: str
) -> dict[str, list[float]]:
    """Slope and intercepts at the least loss against smoothed targets: one slope >= 0 for all columns of a softmax.

    Platt's targets, (n_c + 1) / (n_c + C) for the true class and 1 / (n_c + C) for each other, keep it finite when
    the classes separate. The loss is convex, so that where the best slope is negative the best allowed one is 0;
    nothing can separate then, and intercepts are those of the shares themselves. More than two have mean 0.
    """
    from scipy.optimize import minimize

    width = scores.shape[1]
    if kind == "sigmoid":  # every label is a matter of two classes
        fits = [
            _platt(scores[:, c : c + 1], np.stack([1 - t, t], axis=1), weight, "softmax")
            for c, t in enumerate(targets.T)
        ]
        return {key: [fit[key][0] for fit in fits] for key in ("slope", "intercept")}
    count = (targets.T @ weight) @ targets.T  # (n,), of the bag's own class
    smooth = (targets * count[:, None] + 1) / (count[:, None] + targets.shape[1])
    wanted = smooth[:, -width:]
    unit = max(float(np.abs(scores).max()), 1e-12)  # L-BFGS steps alike in slope and intercept

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = scores / unit * values[0] + values[1:]
        error = (_link(z, kind)[:, -width:] - wanted) * (weight / weight.sum())[:, None]
        return _loss(z, smooth, weight, kind), np.append((error * scores).sum() / unit, error.sum(axis=0))

    start, bounds = np.append(unit, np.zeros(width)), [(0.0, None), *[(None, None)] * width]
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    if found[0] <= 0:
        shares = np.log(targets.T @ weight)
        found = np.append(0.0, shares[1:] - shares[:1] if width == 1 else shares)
    bias = found[1:] if width == 1 else found[1:] - found[1:].mean()
    return {"slope": [float(found[0] / unit)], "intercept": bias.tolist()}


def _isotonic(
    scores: NDArray[np.float64], targets: NDArray[np.float64], weight: NDArray[np.float64]
) -> dict[str, list[list[float]]]:
    from sklearn.isotonic import IsotonicRegression

    floor = 1 / (float(weight.sum()) + 2)
    knots: dict[str, list[list[float]]] = {"score": [], "probability": []}
    for score, target in zip(scores.T, targets.T, strict=True):
        fit = IsotonicRegression(y_min=floor, y_max=1 - floor, out_of_bounds="clip").fit(score, target, weight)
        knots["score"].append(fit.X_thresholds_.tolist())
        knots["probability"].append(fit.y_thresholds_.tolist())
    return knots
