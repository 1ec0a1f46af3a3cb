"""What a model said of a slide, as the worklist shows it: from a run's predictions/<model>/<slide_id>.json."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_said(path: Path, urgent: str | None) -> dict[str, Any] | None:
    """A `Said` of api.ts, and under names that begin with _ what is not sent; None where the file cannot be read.

    urgent  the class whose probability is the urgency; None: the last of the model's classes
    """
    try:
        row = json.loads(path.read_bytes())
        return said_of(row, urgent)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # of another version, or cut short: it is predicted anew by the next run


def said_of(row: Mapping[str, Any], urgent: str | None) -> dict[str, Any]:
    """The same, of the file's content."""
    probability = {name.removeprefix("probability_"): float(value) for name, value in row["probability"].items()}
    kind, outputs = _outputs(row["output"])
    if probability:
        kind, outputs = "probability", probability
    predicted = row["predicted"] or None
    value = outputs.get(predicted) if predicted in outputs else max(outputs.values(), default=None)
    if kind in ("value", "risk"):
        value = next(iter(outputs.values()), None)
    of_class = urgent if urgent in probability else next(reversed(probability), None)
    return {
        "status": row["status"],
        "predicted": predicted,
        "value": value,
        "kind": kind,
        "spread": row["spread"],
        "outputs": outputs,
        "set": list(row["set"]),
        "abstains": row["abstains"],
        "flags": list(row["flags"]),
        "urgency": None if of_class is None else probability[of_class],
        "uncertainty": _uncertainty(list(probability.values()), row["abstains"]),
        "_tiles": row["tiles"],
        "_failed": row["failed_tiles"],
        "_classes": list(outputs) if kind in ("probability", "softmax", "sigmoid") else [],
    }


def _outputs(output: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """(kind, name → number): softmax_tumor → softmax, tumor; risk and value stand for themselves."""
    first = next(iter(output), "value")
    kind, line, _ = first.partition("_")
    if not line:
        return kind, {name: float(value) for name, value in output.items()}
    return kind, {name.removeprefix(f"{kind}_"): float(value) for name, value in output.items()}


def _uncertainty(probabilities: list[float], abstains: bool | None) -> float | None:
    """Entropy over its maximum, 1 where the model abstains; None where no probabilities are known."""
    if abstains:
        return 1.0
    total = sum(probabilities)
    if len(probabilities) < 2 or total <= 0:
        return None
    shares = [value / total for value in probabilities if value > 0]
    return min(1.0, max(0.0, -sum(share * math.log(share) for share in shares) / math.log(len(probabilities))))
