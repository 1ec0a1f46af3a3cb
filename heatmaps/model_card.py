"""What a model is, what it may be used for, what it was made of, and how well it did: the card that goes with it.

Its questions are those of Mitchell et al., Model Cards for Model Reporting, FAccT 2019. Written twice, for people and
for repositories: as one HTML page and as Markdown.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from wsi.publish import appear_file

from .charts import Chart, draw
from .evaluation_report import CalibrationRow, CountTable, FigureRow, FlowStep, figure_text, p_text, short
from .report import page_environment, visible

MARKDOWN, HTML = "MODEL_CARD.md", "MODEL_CARD.html"
NOT_FOR = (
    "Diagnosis, or any decision about a patient: it is no medical device.",
    "Tissue, stains, scanners or scales other than those it was trained on, unless it was evaluated there.",
)
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~])")


@dataclass(frozen=True, slots=True)
class BackboneRow:
    """One network that embeddings come from. use: what its licence allows, in words."""

    name: str
    licence: str
    source: str = ""
    use: str = ""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """All that the card says.

    summary   what it takes and what it gives, in a sentence or two
    intended  uses it was made for; not_for: uses it must not be put to
    flow      from the cohort's slides to the bags it was trained on
    figures   out of fold; how says on what, and how its intervals come about
    limits    what the reader must know, as sentences
    contract  what its embeddings must be: name → text
    commands  how it is used
    facts     versions, seeds, hash of the splits, digest of the weights: name → text
    """

    name: str
    created: datetime
    summary: str
    intended: Sequence[str] = ("Research on slides like those it was trained on.",)
    not_for: Sequence[str] = NOT_FOR
    synthetic: bool = False
    flow: Sequence[FlowStep] = ()
    cohort: Sequence[CountTable] = ()
    splits: Mapping[str, str] = field(default_factory=dict)
    figures: Sequence[FigureRow] = ()
    how: str = ""
    calibration: Sequence[CalibrationRow] = ()
    calibration_text: str = ""
    charts: Sequence[Chart] = ()
    limits: Sequence[str] = ()
    contract: Mapping[str, str] = field(default_factory=dict)
    backbones: Sequence[BackboneRow] = ()
    commands: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_model_card(card: ModelCard, folder: Path) -> tuple[Path, Path]:
    """Write MODEL_CARD.md and MODEL_CARD.html into `folder`; returns their paths. Text is escaped in both."""
    for name, text in ((MARKDOWN, card_markdown(card)), (HTML, card_html(card))):
        with appear_file(folder / name) as draft:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    return folder / MARKDOWN, folder / HTML


def card_html(card: ModelCard) -> str:
    """The card as one HTML page that prints, runs no script and loads nothing."""
    environment = page_environment()
    environment.filters |= {"draw": draw, "short": short, "p": p_text}
    return environment.get_template("model_card.html.j2").render(card=card)


def card_markdown(card: ModelCard) -> str:
    """The card as Markdown; what stands in its texts is shown as it is, not read as marks."""
    lines = [f"# {_text(card.name)}", ""]
    if card.synthetic:
        lines += ["**SYNTHETIC DATA**: made by a program, not from patients.", ""]
    lines += ["**Not for diagnosis.** Research output of a machine-learning model; not a medical device.", ""]
    lines += [_text(card.summary), ""]
    for title, items in (("Intended use", card.intended), ("Not to be used for", card.not_for)):
        lines += _section(title, [f"- {_text(item)}" for item in items])
    if card.commands:
        lines += _section(
            "How to use it", ["```", *(_line(command).replace("```", "") for command in card.commands), "```"]
        )
    flow = [
        f"{number}. {_text(step.step)}: {step.slides:,} slides of {step.patients:,} patients{_lost(step)}"
        for number, step in enumerate(card.flow, start=1)
    ]
    counts = [
        line
        for table in card.cohort
        for line in (
            *_table((table.column, "slides", "patients"), [(n, f"{s:,}", f"{p:,}") for n, s, p in table.rows]),
            "",
        )
    ]
    lines += _section("Training data", [*flow, *([""] if flow and counts else []), *counts])
    lines += _section("Splits", _pairs(card.splits))
    figures = [(row.name, row.of, figure_text(row), row.reason or "") for row in card.figures]
    lines += _section(
        "Performance", [*_paragraph(card.how), *_table(("figure", "of", "value (95 % interval)", ""), figures)]
    )
    calibration = [
        (row.now.name, row.now.of, figure_text(row.now), figure_text(row.after) if row.after else "–")
        for row in card.calibration
    ]
    rows = _table(("figure", "of", "before", "after calibration"), calibration)
    lines += _section("Calibration", [*_paragraph(card.calibration_text), *rows])
    lines += _section("Limitations", [f"- {_text(item)}" for item in card.limits])
    backbones = [(row.name, row.licence, row.use, row.source) for row in card.backbones]
    lines += _section("Backbones and their licences", _table(("backbone", "licence", "use", "source"), backbones))
    lines += _section("Contract of its embeddings", _pairs(card.contract))
    lines += _section(
        "How it was made", _pairs({"Made": card.created.strftime("%Y-%m-%d %H:%M %Z").strip(), **card.facts})
    )
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines, *([""] if lines[-1] else [])] if lines else []


def _paragraph(text: str) -> list[str]:
    return [_text(text), ""] if text else []


def _pairs(values: Mapping[str, str]) -> list[str]:
    return [f"- **{_text(name)}**: {_text(value)}" for name, value in values.items()]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = [f"| {' | '.join(_text(name) for name in head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows)]


def _lost(step: FlowStep) -> str:
    return "".join(f"; {len(ids):,} left out: {_text(reason)}" for reason, ids in step.excluded.items())


def _line(text: str) -> str:
    """One line, its control characters written out."""
    return str(visible(text.replace("\n", " ")))


def _text(text: str) -> str:
    return _MARKS.sub(r"\\\1", _line(text))
