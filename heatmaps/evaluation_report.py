"""The page that defends an evaluation: who was judged, by what, how well, how sure that is, and where it fails.

Its sections say which items they answer of TRIPOD+AI (Collins et al., BMJ 2024) and CLAIM (Mongan, Moy & Kahn,
Radiology: Artificial Intelligence 2020).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from wsi.publish import appear_file

from .charts import Chart, draw
from .report import Confusion, Headline, _data_uri, page_environment


@dataclass(frozen=True, slots=True)
class FlowStep:
    """What is left at a step of the data's flow; excluded: reason → ids lost on the way from the step before."""

    step: str
    slides: int
    patients: int
    excluded: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FigureRow:
    """A figure with its 95 % interval. `of` is the class, label or time; `reason` says why a number is missing."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    of: str = ""
    unit: str = ""
    better: str = ""
    method: str = ""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class CountTable:
    """Slides and patients by the values of one column: rows of (value, slides, patients)."""

    column: str
    rows: Sequence[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """A figure of calibration as the outputs are, and after they were calibrated (None: they were not)."""

    now: FigureRow
    after: FigureRow | None = None


@dataclass(frozen=True, slots=True)
class PointRow:
    """Decisions at a threshold. counts: true positives, false positives, true negatives, false negatives."""

    of: str
    rule: str
    thresholds: Sequence[float]
    chosen: str
    counts: tuple[int, int, int, int]
    figures: Sequence[FigureRow]
    method: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group of a column. figures, differences (to the rest) and p (adjusted) by the table's figure names."""

    name: str
    slides: int
    patients: int
    prevalence: float | None = None
    figures: Sequence[FigureRow] = ()
    differences: Sequence[FigureRow] = ()
    p: Sequence[float | None] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class GroupTable:
    """Subgroups by one column; multiplicity says how p values were adjusted."""

    column: str
    rows: Sequence[GroupRow]
    multiplicity: str
    unknown: int = 0
    threshold: str = ""


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A figure of this model and of another on the same slides, and the difference this - other."""

    name: str
    first: float | None
    second: float | None
    difference: FigureRow
    p: float | None
    method: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """This model beside another: other is its name; text says on which slides and what p values mean."""

    other: str
    rows: Sequence[ComparedRow]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One of the worst errors. image: PNG or JPEG bytes, about 900 px across; heatmap: a path relative to the page."""

    slide_id: str
    truth: str
    said: str
    detail: str = ""
    image: bytes | None = None
    heatmap: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """All that the page says; sections that hold nothing are left out, but for those that a reader must miss.

    headline     the figure that the evaluation is about
    noun         what was judged: slides, cases or patients; flow_noun: what the steps of the flow count
    splits       how bags were divided, with hash and leakage check: name → text
    calibration  text says what the outputs are; sets and abstaining likewise
    facts        software, contract, seeds, tables: name → text
    """

    title: str
    created: datetime
    command: str
    question: str
    headline: FigureRow
    slides: int
    patients: int
    noun: str = "slides"
    flow_noun: str = "slides"
    synthetic: bool = False
    cards: Sequence[Headline] = ()
    flow: Sequence[FlowStep] = ()
    cohort: Sequence[CountTable] = ()
    splits: Mapping[str, str] = field(default_factory=dict)
    figures: Sequence[FigureRow] = ()
    folds: Sequence[tuple[str, float | None]] = ()
    confusion: Confusion | None = None
    charts: Sequence[Chart] = ()
    calibration: Sequence[CalibrationRow] = ()
    calibration_text: str = ""
    points: Sequence[PointRow] = ()
    subgroups: Sequence[GroupTable] = ()
    sets: Sequence[FigureRow] = ()
    sets_text: str = ""
    abstain: Sequence[FigureRow] = ()
    abstain_text: str = ""
    comparison: Comparison | None = None
    cases: Sequence[Case] = ()
    cases_text: str = ""
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_evaluation_report(report: EvaluationReport, path: Path) -> None:
    """Write the page: one HTML file that prints, runs no script and loads nothing.

    Text is escaped. Raises SpecError for a picture that is no PNG or JPEG and for a link that is no relative path.
    """
    environment = page_environment()
    environment.filters |= {"draw": draw, "figure": figure_text, "short": short, "p": p_text}
    html = environment.get_template("evaluation.html.j2").render(
        report=report,
        pictures=[None if case.image is None else _data_uri(case.slide_id, case.image) for case in report.cases],
        methods=list(dict.fromkeys(row.method for row in (report.headline, *report.figures) if row.method)),
    )
    with appear_file(path) as draft:
        draft.write_text(html, encoding="utf-8", errors="backslashreplace")


def figure_text(row: FigureRow) -> str:
    """0.912 (0.830 to 0.971), for a line of text."""
    if row.value is None:
        return "not known"
    return short(row.value) + (f" ({short(row.low)} to {short(row.high)})" if row.low is not None else "")


def short(value: float | None) -> str:
    """A number with three decimals, or four digits where it is large; – without one."""
    if value is None or value != value:
        return "–"
    text = f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.1f}"
    return text.replace("-", "\N{MINUS SIGN}")


def p_text(value: float | None) -> str:
    """A p value with three decimals; never 0."""
    return "–" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
