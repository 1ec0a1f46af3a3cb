"""What a person opens first: one HTML file that holds everything it shows and loads nothing from anywhere."""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from PIL import Image

from wsi.errors import SpecError
from wsi.publish import appear_file

if TYPE_CHECKING:
    import jinja2

MAX_FIGURES = 40
PAGE = 100  # slides on a page
_MAX_CLASS_COLUMNS = 4
_PICTURE_TYPES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))
_THUMBNAIL_PX = 88
# Control characters and marks that reverse the reading direction are shown, not obeyed
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure at the top: "AUROC", "0.93", "95 % interval 0.86 to 0.98"."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StageRow:
    """How many slides a stage left in which state, and its wall time in seconds (None: not measured)."""

    stage: str
    done: int
    empty: int
    skipped: int
    failed: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure in [0, 1] with its confidence interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class FoldRow:
    """One fold of a cross-validation; `auroc` is None where a fold holds one class only."""

    name: str
    patients: int
    slides: int
    auroc: float | None


@dataclass(frozen=True, slots=True)
class RocCurve:
    """Points (false positive rate, true positive rate) in [0, 1], from (0, 0) to (1, 1)."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Confusion:
    """counts[truth][predicted] of slides; `rule` says how the class was chosen."""

    classes: Sequence[str]
    counts: Sequence[Sequence[int]]
    rule: str = "softmax of at least 0.5"


@dataclass(frozen=True, slots=True)
class Baseline:
    """What something simpler reaches on the same slides."""

    name: str
    auroc: Interval
    note: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures on slides that the model was not trained on. `interval` says what low and high are, `figure` what `auroc`
    and the folds' are: another one in [0, 1] where the task has no AUROC. `more` links to the whole evaluation."""

    positive: str
    auroc: Interval
    patients: int
    slides: int
    interval: str = "95 % bootstrap interval over patients"
    figure: str = "AUROC"
    more: str | None = None
    folds: Sequence[FoldRow] = ()
    curves: Sequence[RocCurve] = ()
    confusion: Confusion | None = None
    baselines: Sequence[Baseline] = ()
    tile_auroc: Interval | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class SlideRow:
    """A slide's result. files: name of a format → path relative to the report; `label` the truth where it is known."""

    slide_id: str
    status: str
    label: str | None = None
    predicted: str | None = None
    softmax: Mapping[str, float] = field(default_factory=dict)
    tiles: int | None = None
    failed_tiles: int = 0
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture of a slide as PNG or JPEG bytes; about 900 pixels across is enough (`thumbnail_jpeg`)."""

    slide_id: str
    image: bytes
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A slide that a stage could not do, and what to do about it; `details` may be a whole traceback."""

    slide_id: str
    stage: str
    problem: str
    remedy: str
    details: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page says. The most telling figures come first: those after `max_figures` are left out."""

    title: str
    created: datetime
    command: str
    synthetic: bool = False
    headlines: Sequence[Headline] = ()
    stages: Sequence[StageRow] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    slides: Sequence[SlideRow] = ()
    figures: Sequence[Figure] = ()
    failures: Sequence[Failure] = ()
    warnings: Sequence[str] = ()
    max_figures: int = MAX_FIGURES


def write_report(report: Report, path: Path) -> None:
    """Write the report as an HTML file that holds the first slides, and a file beside it for each further page of them.

    It needs no network, no script and no other file; only links lead out of it, to heatmap files and to its own pages,
    `slides-002.html` and so on. Those of an earlier, longer report are removed. Text from manifests and slides is
    escaped. Raises SpecError for a picture that is no PNG or JPEG and for a link that is not a relative path.
    """
    environment = page_environment()
    shown = report.figures[: report.max_figures]
    classes = list(dict.fromkeys(name for row in report.slides for name in row.softmax))
    figures = [(figure, _data_uri(figure.slide_id, figure.image)) for figure in shown]  # refuses what is no picture
    common = {
        "report": report,
        "thumbnails": {figure.slide_id: (i, _thumbnail(figure)) for i, figure in enumerate(shown)},
        "classes": classes if len(classes) <= _MAX_CLASS_COLUMNS else [],
        "has_labels": any(row.label is not None for row in report.slides),
        "has_scores": bool(classes),
    }
    front = {
        "figures": figures,
        "left_out": len(report.figures) - len(shown),
        "statuses": _counted(row.status for row in report.slides),
        "came_out": _most_first(_counted(row.predicted for row in report.slides if row.predicted)),
        "failed_by_stage": _failed_by_stage(report.failures),
    }
    pages = _pages(len(report.slides), path)
    for number, page in enumerate(pages):
        rows = report.slides[page["first"] - 1 : page["last"]]
        template = environment.get_template("slides.html.j2" if number else "report.html.j2")
        more = {"thumbnails": {}} if number else front
        html = template.render({**common, **more, "page": page, "rows": rows})
        with appear_file(path if not number else path.with_name(page["file"])) as draft:
            draft.write_text(html, encoding="utf-8", errors="backslashreplace")
    for stale in path.parent.glob("slides-[0-9][0-9][0-9].html"):
        if stale.name not in {page["file"] for page in pages}:
            stale.unlink()


def _pages(slides: int, path: Path) -> list[dict[str, Any]]:
    """Of each page of slides: its first and last, its file, and the others, where there are any."""
    pages: list[dict[str, Any]] = []
    for number, start in enumerate(range(0, max(slides, 1), PAGE)):
        file = f"slides-{number + 1:03d}.html" if number else path.name
        pages.append({"first": start + 1, "last": min(start + PAGE, slides), "total": slides, "file": file})
    for page in pages:
        page["home"] = path.name
        page["others"] = [{**other, "current": other is page} for other in pages] if len(pages) > 1 else []
    return pages


def page_environment() -> "jinja2.Environment":
    """For this package's pages: everything is escaped, and nothing may be missing."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files(__package__).joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    environment.filters |= {
        "count": _count,
        "score": _score,
        "duration": duration,
        "link": relative_link,
        "polyline": _polyline,
    }
    return environment


def visible(value: object) -> object:
    """Text with its control characters written out, so that an id cannot forge a line or turn the text around."""
    if type(value) is not str:  # Markup among them: made by the template itself
        return value
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", value)


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _score(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def _counted(words: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return counts


def _most_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _failed_by_stage(failures: Sequence[Failure]) -> dict[str, tuple[int, str]]:
    """How many slides failed in each stage, with the problem that most of them had."""
    found: dict[str, tuple[int, str]] = {}
    for stage, count in _counted(failure.stage for failure in failures).items():
        problems = _most_first(_counted(failure.problem for failure in failures if failure.stage == stage))
        found[stage] = (count, next(iter(problems)))
    return found


def relative_link(path: str) -> str:
    """A relative path as a URL. A scheme or an absolute path would lead somewhere that is not the run."""
    if path.startswith(("/", "\\")) or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path):
        raise SpecError(path, "a link that is no relative path", "give the path relative to the report's folder")
    return quote(path.replace("\\", "/"))


def _polyline(points: Sequence[tuple[float, float]], side: float) -> str:
    """SVG points of a curve in the unit square, y upwards, at most about 500 of them."""
    step = max(1, len(points) // 500)
    kept = [*points[:-1:step], *points[-1:]]
    return " ".join(f"{x * side:.1f},{(1 - y) * side:.1f}" for x, y in kept)


def _data_uri(slide_id: str, picture: bytes) -> str:
    for magic, kind in _PICTURE_TYPES:
        if picture.startswith(magic):
            return f"data:{kind};base64,{base64.b64encode(picture).decode()}"
    raise SpecError(slide_id, "its figure is neither PNG nor JPEG", "give the bytes of one of them")


def _thumbnail(figure: Figure) -> str:
    with Image.open(io.BytesIO(figure.image)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, format="JPEG", quality=80)
    return _data_uri(figure.slide_id, out.getvalue())
