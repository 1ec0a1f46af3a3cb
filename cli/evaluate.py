"""wsi evaluate: a run's model, or anyone's table of predictions."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mil.evaluation.judge_parts import JudgeSpec
    from mil.evaluation.operating import Rule
    from mil.evaluation.table_truth import TableSpec

READ, JUDGE, RUN = "How the tables are read", "What is judged", "A run's model"
MOST_LINES = 14  # figures on the terminal; figures.csv has all


def _option(help_text: str, panel: str, *names: str, takes: str = "NAME") -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, metavar=takes)


Judged = Annotated[
    str, typer.Argument(help="Predictions, CSV or Parquet; with --model the run's slides", metavar="PREDICTIONS")
]
Truth = Annotated[Path | None, typer.Argument(help="CSV with the same ids and the truth", metavar="MANIFEST")]
Figures = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Folder of the figures, by default evaluation; the run's folder", metavar="FOLDER"
    ),
]
Regions = Annotated[
    Path | None, _option("Drawn regions, a file a slide: does the heatmap find them?", RUN, takes="FOLDER")
]


def evaluate(
    source: Judged,
    manifest: Truth = None,
    out: Figures = None,
    model: Annotated[Path | None, _option("A model of the run", RUN, "--model", "-m", takes="FOLDER")] = None,
    task: Annotated[
        str, _option("classification, multilabel, ordinal, regression, cox or survival", READ)
    ] = "classification",
    target: Annotated[str, _option("Column of the truth", READ)] = "label",
    time: Annotated[str, _option("Column of the time to event, or of follow-up", READ)] = "time",
    event: Annotated[str, _option("Column that is 1 where the event was seen", READ)] = "event",
    classes: Annotated[str | None, _option("a,b,…: the classes, the positive one last", READ, takes="NAMES")] = None,
    positive: Annotated[str | None, _option("Of two classes, the one looked for", READ)] = None,
    id_: Annotated[str | None, _option("Column that names slides, cases or patients", READ, "--id")] = None,
    probability: Annotated[str | None, _option("Column of the positive class's probability", READ)] = None,
    score: Annotated[str | None, _option("Column of a score, a number or a risk", READ)] = None,
    by: Annotated[list[str] | None, _option("Subgroups by this column; may be repeated", JUDGE)] = None,
    compare: Annotated[Path | None, _option("Predictions of a second model", JUDGE, takes="FILE")] = None,
    operating_point: Annotated[
        list[str] | None, _option("youden, sensitivity=0.95, specificity=0.9, threshold=0.4", JUDGE, takes="RULE")
    ] = None,
    prevalence: Annotated[float | None, _option("Where it will be used, for PPV and NPV", JUDGE, takes="SHARE")] = None,
    horizon: Annotated[list[float] | None, _option("Time at which survival is judged", JUDGE, takes="TIME")] = None,
    alpha: Annotated[float, _option("Sets of classes may miss the truth so often", JUDGE, takes="SHARE")] = 0.1,
    risk: Annotated[float, _option("Answers may be wrong so often; else abstain", JUDGE, takes="SHARE")] = 0.1,
    regions: Regions = None,
    region_class: Annotated[list[str] | None, _option("Only these classes of regions; may be repeated", RUN)] = None,
    seed: Annotated[int, _option("Of the resampling", JUDGE, takes="N")] = 0,
) -> None:
    """Judge predictions against the truth: figures with intervals, calibration, subgroups, a report.

    A table of anyone's model: wsi evaluate predictions.csv manifest.csv -o FOLDER

    A run: wsi evaluate SOURCE --out RUN --model MODEL
    """
    from wsi.errors import SpecError

    options = judge_spec(by, operating_point, horizon, {"prevalence": prevalence, "alpha": alpha, "risk": risk})
    if model is not None:
        said: dict[str, Any] = {"--target": target != "label", "--time": time != "time", "--event": event != "event"}
        said |= {"--task": task != "classification", "--classes": classes, "--positive": positive, "--id": id_}
        said |= {"--probability": probability, "--score": score, "--compare": compare, "--seed": seed}
        drawn = (regions, tuple(region_class or ()))
        _of_a_run(source, _run_folder(out, manifest, said), model, options, drawn)
        return
    if regions is not None:
        raise SpecError("--regions", "a table says nothing of tiles", "give it with --model, for a run")
    if manifest is None:
        raise SpecError("MANIFEST", "no table with the truth is given", "give one, or --model for a run's predictions")
    from mil.spec import TaskSpec

    names = tuple(name.strip() for name in (classes or "").split(",") if name.strip())
    what = TaskSpec(task, target, time, event, names)
    table = _table_spec(what, positive, id_, probability, score)
    _of_a_table((Path(source), manifest, compare), out or Path("evaluation"), table, options, seed)


def _run_folder(out: Path | None, manifest: Path | None, idle: dict[str, Any]) -> Path:
    """The run's folder. Raises SpecError without one, and for options of tables, which a run's model would ignore."""
    from wsi.errors import SpecError

    if out is None or manifest is not None:
        remedy = "give wsi evaluate SOURCE --out RUN --model MODEL"
        raise SpecError("--model", "it needs the run's folder, and the run's slides alone", remedy)
    if named := [name for name, value in idle.items() if value]:
        remedy = "leave it out, or judge its table: wsi evaluate RUN/predictions/MODEL.csv MANIFEST"
        raise SpecError(named[0], "it is for tables; a run's model says itself what it predicts", remedy)
    return out


def judge_spec(
    by: list[str] | None, rules: list[str] | None, horizons: list[float] | None, shares: dict[str, float | None]
) -> "JudgeSpec":
    """The options of what is judged. Raises SpecError for one that is none."""
    from mil.evaluation.judge_parts import JudgeSpec

    given: dict[str, Any] = {"subgroups": tuple(dict.fromkeys(by or ())), **shares}
    if rules:
        given["rules"] = tuple(parse_rule(text) for text in rules)
    return JudgeSpec(**given, horizons=tuple(sorted(horizons or ())))


def parse_rule(text: str) -> "Rule":
    """youden, sensitivity=0.95, specificity=0.9 or threshold=0.4."""
    from mil.evaluation.operating import Rule
    from wsi.errors import SpecError

    kind, equals, value = text.partition("=")
    kind = {"threshold": "given"}.get(kind.strip(), kind.strip())
    try:
        at = float(value) if equals else None
    except ValueError as error:
        remedy = "give such as sensitivity=0.95"
        raise SpecError("--operating-point", f"{value!r} is no number", remedy) from error
    return Rule(kind, at)


def _table_spec(
    task: Any, positive: str | None, id_: str | None, probability: str | None, score: str | None
) -> "TableSpec":
    from mil.evaluation.table_truth import TableSpec

    return TableSpec(task, positive, id_, probability, score)


def _of_a_table(
    files: tuple[Path, Path, Path | None], out: Path, table: "TableSpec", options: "JudgeSpec", seed: int
) -> None:
    from jobs.evaluate_table import TableJob, evaluate_table, write_evaluation
    from jobs.folder import command_line, run_facts

    from .console import say

    predictions, manifest, other = files
    facts = run_facts(command_line(), {})
    result = evaluate_table(TableJob(predictions, manifest, table, options, other, seed))
    page = write_evaluation(result, out, facts)
    for line in summary(result):
        say(line)
    compared = (result["comparison"] or {}).get("notes", [])
    for note in dict.fromkeys([*result["notes"], *result["metrics"]["notes"], *compared]):
        say(f"note: {note}", style="yellow")
    say(f"figures: {out / 'figures.csv'}")
    say(f"report: {page}")


def _of_a_run(
    source: str, out: Path, model: Path, options: "JudgeSpec", drawn: tuple[Path | None, tuple[str, ...]]
) -> None:
    from jobs.demo import truth_figures
    from jobs.evaluation import evaluate_run
    from jobs.evaluation_run import make_evaluation_report
    from jobs.features import names_of
    from jobs.folder import command_line, run_facts, write_run
    from jobs.localisation import localise
    from jobs.model_stages import open_model
    from jobs.report import make_report

    from .console import say
    from .stages import settings_of, start

    job = start(source, out, {"model": str(model)}, model=model)
    trained = open_model(str(model))
    job.recall("tile", "embed", contract=names_of(trained.contract)[0])
    truths = truth_figures(job.records, job.folder, str(model))
    if drawn[0] is not None:
        truths["localisation"] = localise(job.records, trained, job.folder, drawn[0], drawn[1])
    result = evaluate_run(job.records, str(model), job.folder, truths, options)
    for line in summary({**result, "noun": f"{trained.training.level}s"}):
        say(line)
    places = result.get("localisation") or {"figures": [], "notes": []}
    for row in places["figures"]:
        say(figure_line(row))
    for note in [*result["notes"], *places["notes"], *result["metrics"]["notes"]]:
        say(f"note: {note}", style="yellow")
    say(f"figures: {job.folder.evaluation(result['model'])}")
    facts = run_facts(command_line(), settings_of(job))
    write_run(job.folder, facts)
    say(f"evaluation: {make_evaluation_report(job, facts, result)}")
    say(f"report: {make_report(job, facts, result)}")


def summary(result: dict[str, Any]) -> list[str]:
    """What the terminal shows of an evaluation, in 80 columns: counts, figures, thresholds, the comparison."""
    metrics, headline = result["metrics"], result["metrics"]["headline"]
    value = "not known" if headline["value"] is None else _short(headline["value"])
    counts = f"{metrics['bags']} {result.get('noun', 'slides')} of {metrics['patients']} patients"
    lines = [f"{counts}: {headline['name']} {value} ({metrics['task']})"]
    lines += [f"positive class: {metrics['positive']}"[:80], ""] if metrics["positive"] else [""]
    lines.append(f"{'figure':<42}{'value':>8}   95 % interval")
    shown = metrics["figures"][:MOST_LINES]
    shown += [figure for figure in metrics["calibration"].get("figures", [])[:1] if figure not in shown]
    lines += [figure_line(figure) for figure in shown]
    left = len(metrics["figures"]) - MOST_LINES
    if left > 0:
        lines.append(f"… and {left} more in figures.csv")
    for point in metrics["operating_points"][:3]:
        lines += ["", f"{point['of']}: {point['name']}"[:80], f"  threshold chosen {point['chosen']}"]
        lines += [figure_line(figure, named=False) for figure in point["figures"][:4]]
    for table in metrics["subgroups"]:
        lines += _group_lines(table)
    for row in (result.get("comparison") or {}).get("figures", []):
        lines += [""] if row is result["comparison"]["figures"][0] else []
        lines.append(_with_p(figure_line({**row["difference"], "name": f"difference in {row['name']}"}), row["p"]))
    return [*lines, ""]


def _group_lines(table: dict[str, Any]) -> list[str]:
    """The first figure of each group of one column, and the p value of its difference to the rest."""
    names = [figure["name"] for group in table["groups"] for figure in group["figures"][:1]]
    first = f"{names[0]}; p of the difference to the rest, adjusted (Holm)" if names else "not judged"
    lines = ["", f"by {table['column']}: {first}"[:80]]
    for group in table["groups"]:
        who = f"{group['name'][:22]}, {group['patients']} patients"
        if not group["figures"]:
            lines.append(figure_line({"name": who, "value": None, "low": None, "reason": group["reason"]}, named=False))
        for figure in group["figures"][:1]:
            lines.append(_with_p(figure_line({**figure, "name": who}, named=False), figure["p_holm"]))
    return lines


def _with_p(line: str, p: float | None) -> str:
    """The line with a p value; a reason stays on the lines below."""
    head, *below = line.split("\n")
    return "\n".join([head + ("" if p is None else "  p <0.001" if p < 0.001 else f"  p {p:.3f}"), *below])


def figure_line(figure: dict[str, Any], named: bool = True) -> str:
    """AUROC, tumor                   0.912   0.830 to 0.971; a reason why something is missing on a line of its own."""
    name = f"{figure['name']}{', ' + figure['of'] if named and figure['of'] else ''}"
    name = name if len(name) <= 41 else name[:40] + "…"
    value = "–" if figure["value"] is None else _short(figure["value"])
    if figure["low"] is not None:
        return f"{name:<42}{value:>8}   {_short(figure['low'])} to {_short(figure['high'])}"
    why = textwrap.fill(figure["reason"] or "", 80, initial_indent="    ", subsequent_indent="    ")
    return f"{name:<42}{value:>8}   –" + (f"\n{why}" if why else "")


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"
