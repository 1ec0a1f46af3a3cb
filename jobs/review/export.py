"""What people said, as tables and files that training takes as they are."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from .state import SlideState

REVIEWED = ("reviewed_by", "reviewed_at", "predicted")


def labels_text(states: Mapping[str, SlideState], root: Path) -> str:
    """CSV of the slides with a reviewed class: slide_id, label, reviewed_by, reviewed_at, predicted.

    An accepted slide has the class that was predicted when it was accepted, where the models agreed on it.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(("slide_id", "label", *REVIEWED))
    for slide_id, state in states.items():
        said = set(state.predicted.values())
        predicted = said.pop() if len(said) == 1 else None
        label = {"accepted": predicted, "relabelled": state.label}.get(state.status)
        if label is not None:
            table.writerow((slide_id, label, state.who, state.when, predicted or ""))
    return out.getvalue()
