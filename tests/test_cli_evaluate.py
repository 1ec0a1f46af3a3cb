"""wsi evaluate on anyone's tables: what it reads, what it writes, and what it refuses, saying how to mend it."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from lifelines.utils import concordance_index
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

from mil.evaluation.table import read_table
from mil.evaluation.table_join import read_joined
from mil.evaluation.table_truth import TableSpec
from mil.spec import TaskSpec
from tests.commands import wsi
from wsi.errors import ManifestError, SpecError

MANIFEST = "slide_id,patient_id,label,site\na,p1,tumor,x\nb,p1,normal,x\nc,p2,tumor,y\nd,p3,,y\ne,p4,normal,y\n"
SHARES = "slide_id,softmax_normal,softmax_tumor\na,0.2,0.8\nb,0.7,0.3\nc,0.4,0.6\nd,0.5,0.5\n"


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def rows(path: Path, head: Sequence[str], lines: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(head)
        writer.writerows(lines)
    return path


def joined(folder: Path, predictions: str, manifest: str = MANIFEST, spec: TableSpec | None = None):
    return read_joined(write(folder, "p.csv", predictions), write(folder, "m.csv", manifest), spec)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Predictions of two models and truths of 60 patients with one slide or two; one class and one site are hostile."""
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    names, sites = ("=cmd|calc", "<script>alert(1)</script>"), ("Basel", "=1+1")
    truth = rng.integers(0, 2, 90)
    lines = [[f"s{i}", f"p{i * 2 // 3}", names[truth[i]], sites[i % 2], 30 + i % 50] for i in range(90)]
    rows(folder / "truth.csv", ["slide_id", "patient_id", "label", "site", "age"], [*lines, ["u1", "p80", "", "", ""]])
    for name, skill in (("good", 2.0), ("bad", 0.4)):
        p = 1 / (1 + np.exp(-skill * (2 * truth - 1) - rng.normal(size=90)))
        said = [[f"s{i}", i * 2 // 3 % 3, f"{1 - p[i]:.5f}", f"{p[i]:.5f}"] for i in range(88)]
        rows(folder / f"{name}.csv", ["slide_id", "fold", *(f"softmax_{n}" for n in names)], said)
        np.save(folder / f"{name}.npy", p.round(5))
    np.save(folder / "truth.npy", truth)
    return folder


@pytest.fixture(scope="module")
def evaluated(cohort):
    """The folder that one command writes, and what it prints."""
    options = ["--by", "site", "--by", "age", "--compare", cohort / "bad.csv", "--operating-point", "sensitivity=0.8"]
    text = wsi("evaluate", cohort / "good.csv", cohort / "truth.csv", "-o", cohort / "out", *options)
    return cohort / "out", text, json.loads((cohort / "out" / "evaluation.json").read_text())


def test_a_table_is_judged_as_scikit_learn_does(cohort, evaluated):
    _, text, found = evaluated
    truth, p = np.load(cohort / "truth.npy")[:88], np.load(cohort / "good.npy")[:88]
    figures = {figure["name"]: figure["value"] for figure in found["metrics"]["figures"]}
    assert figures["AUROC"] == pytest.approx(roc_auc_score(truth, p))
    assert figures["AUPRC"] == pytest.approx(average_precision_score(truth, p))
    assert found["metrics"]["patients"] == len({i * 2 // 3 for i in range(88)})
    assert f"{figures['AUROC']:.3f}" in text
    assert max(len(line) for line in text.split("note:")[0].splitlines()) <= 80


def test_who_is_not_judged_is_counted_and_listed(evaluated):
    _, text, found = evaluated
    given, labelled, judged = found["flow"]
    assert (given["slides"], labelled["slides"], judged["slides"]) == (91, 90, 88)
    assert labelled["excluded"] == {"no truth in the manifest": ["u1"]}
    assert judged["excluded"] == {"no row in the table of predictions": ["s88", "s89"]}
    assert "2 not judged, no row in the table of predictions: s88, s89" in text


def test_folds_subgroups_thresholds_and_the_other_model_are_there(evaluated):
    _, text, found = evaluated
    assert found["metrics"]["folds"] == [0, 1, 2]
    (point,) = found["metrics"]["operating_points"]
    assert (point["name"], len(point["thresholds"])) == ("sensitivity of at least 0.8", 3)
    assert [table["column"] for table in found["metrics"]["subgroups"]] == ["site", "age"]
    basel = found["metrics"]["subgroups"][0]["groups"][1]
    line = next(line for line in text.splitlines() if line.startswith(f"Basel, {basel['patients']} patients"))
    assert f"{basel['figures'][0]['value']:.3f}" in line
    assert line.endswith(f"p {basel['figures'][0]['p_holm']:.3f}")
    assert found["comparison"]["other"] == "bad.csv"
    assert "difference in AUROC" in text
    assert found["cases"][0]["truth"] != found["cases"][0]["said"]


def test_the_files_are_whole_and_their_texts_inert(evaluated):
    folder, _, found = evaluated
    with (folder / "figures.csv").open(newline="") as stream:
        figures = list(csv.DictReader(stream))
    assert figures[0]["name"] == "AUROC"
    assert float(figures[0]["value"]) == found["metrics"]["headline"]["value"]
    with (folder / "subgroups.csv").open(newline="") as stream:
        groups = list(csv.DictReader(stream))
    assert {row["group"] for row in groups if row["column"] == "site"} == {"Basel", "'=1+1"}
    cells = [cell for row in (*figures, *groups) for cell in row.values()]
    assert not [cell for cell in cells if cell[:1] in "=+@" and cell]
    page = (folder / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert sorted(path.name for path in folder.iterdir()) == [
        "evaluation.json", "figures.csv", "index.html", "subgroups.csv",
    ]  # fmt: skip


def test_a_number_is_judged(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.normal(20, 5, 40).round(3)
    said = (truth + rng.normal(0, 3, 40)).round(3)
    p = rows(tmp_path / "p.csv", ["slide_id", "predicted"], [[f"s{i}", said[i]] for i in range(40)])
    m = rows(tmp_path / "m.csv", ["slide_id", "ki67"], [[f"s{i}", truth[i]] for i in range(40)])
    wsi("evaluate", p, m, "-o", tmp_path / "out", "--task", "regression", "--target", "ki67")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["metrics"]["headline"]["value"] == pytest.approx(r2_score(truth, said))


def test_a_risk_is_judged(tmp_path):
    rng = np.random.default_rng(0)
    risk = rng.normal(size=40).round(3)
    time, event = (rng.exponential(np.exp(-risk)) + 0.01).round(3), rng.integers(0, 2, 40)
    p = rows(tmp_path / "p.csv", ["patient_id", "hazard"], [[f"p{i}", risk[i]] for i in range(40)])
    m = rows(
        tmp_path / "m.csv", ["slide_id", "patient_id", "months", "died"],
        [[f"s{i}-{k}", f"p{i}", time[i], bool(event[i])] for i in range(40) for k in range(2)],
    )  # fmt: skip
    wsi("evaluate", p, m, "-o", tmp_path / "out", "--task", "cox", "--time", "months", "--event", "died")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["metrics"]["headline"]["value"] == pytest.approx(concordance_index(time, -risk, event))
    assert (found["noun"], found["flow"][0]["slides"]) == ("patients", 40)
    assert "median risk of these very bags" in (tmp_path / "out" / "index.html").read_text()
    rows(p, ["patient_id", "hazard", "fold"], [[f"p{i}", risk[i] + 9 * (i % 2), i % 2] for i in range(40)])
    wsi("evaluate", p, m, "-o", tmp_path / "out", "--task", "cox", "--time", "months", "--event", "died")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Harrell, within folds" in page
    assert "median risk of each fold" in page


def test_survival_chances_are_read_with_their_times(tmp_path):
    task = TableSpec(TaskSpec("survival"))
    said = "slide_id,risk,survival_24,survival_12\na,0.5,0.3,0.8\nb,-1,0.7,0.9\n"
    found = joined(tmp_path, said, "slide_id,time,event\na,10,1\nb,30.5,0\n", task).predictions
    assert found.times == (12, 24)
    assert found.outputs.tolist() == [[0.5, 0.8, 0.3], [-1, 0.9, 0.7]]
    assert found.truth.tolist() == [[10, 1], [30.5, 0]]
    with pytest.raises(ManifestError, match="survival rises with time"):
        joined(tmp_path, "slide_id,risk,survival_1,survival_2\na,0.5,0.3,0.8\n", "slide_id,time,event\na,1,1\n", task)


@pytest.mark.parametrize(
    ("predictions", "outputs", "calibrated"),
    [
        (SHARES, [[0.2, 0.8], [0.7, 0.3], [0.4, 0.6]], False),
        (SHARES.replace("softmax", "probability"), [[0.2, 0.8], [0.7, 0.3], [0.4, 0.6]], True),
        (SHARES.replace("softmax_", ""), [[0.2, 0.8], [0.7, 0.3], [0.4, 0.6]], False),
        (SHARES.replace(",", ";"), [[0.2, 0.8], [0.7, 0.3], [0.4, 0.6]], False),
        (SHARES.replace(",", "\t"), [[0.2, 0.8], [0.7, 0.3], [0.4, 0.6]], False),
        ("\ufeff" + SHARES, [[0.2, 0.8], [0.7, 0.3], [0.4, 0.6]], False),
        ("slide_id,Probability\na,0.8\nb,0.25\n", [[0.2, 0.8], [0.75, 0.25]], True),
        ("slide_id,prob_normal\na,0.25\nb,0.75\n", [[0.75, 0.25], [0.25, 0.75]], True),
        ("slide_id,score\na,7\nb,-2.5\n", [[-7, 7], [2.5, -2.5]], False),
        ("slide_id,normal,tumor,status\na,0.33,0.68,done\nb,,,empty\n", [[0.33 / 1.01, 0.68 / 1.01]], False),
        ("slide_id,normal,tumor\na,0.333,0.6675\nb,0.3,0.7\n", [[0.333, 0.6675], [0.3, 0.7]], False),
    ],
)
def test_columns_are_found_by_their_names(tmp_path, predictions, outputs, calibrated):
    found = joined(tmp_path, predictions).predictions
    np.testing.assert_allclose(found.outputs, outputs)
    assert found.calibrated == calibrated
    assert set(found.classes) == {"normal", "tumor"}
    assert found.patients[:2] == ("p1", "p1")[: len(found)]
    assert found.columns["site"][0] == "x"


def test_columns_may_be_named(tmp_path):
    said, known = "barcode,p1,p2\nq,0.9,-4\nr,0.4,2\n", "barcode,outcome\nq,1\nr,0.0\n"
    task = TaskSpec("classification", "outcome")
    by_score = joined(tmp_path, said, known, TableSpec(task, positive="0", id="barcode", score="p2")).predictions
    assert (by_score.classes, by_score.outputs[:, 1].tolist(), by_score.truth.tolist()) == (("1", "0"), [-4, 2], [0, 1])
    by_share = joined(tmp_path, said, known, TableSpec(task, probability="p1")).predictions
    assert (by_share.classes, by_share.truth.tolist()) == (("0", "1"), [1, 0])


def test_a_second_model_may_name_the_classes_in_another_order(tmp_path):
    said = write(
        tmp_path, "p.csv", "slide_id,softmax_normal,softmax_tumor\na,0.2,0.8\nb,0.7,0.3\nc,0.4,0.6\ne,0.5,0.5\n"
    )
    known = write(tmp_path, "m.csv", MANIFEST)
    one_column = write(tmp_path, "o.csv", "slide_id,prob_normal\na,0.2\nb,0.7\nc,0.4\ne,0.5\n")
    text = wsi("evaluate", said, known, "-o", tmp_path / "out", "--compare", one_column)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {row["name"]: row["difference"]["value"] for row in found["comparison"]["figures"]}["AUROC"] == 0
    assert "positive class: tumor\n" in text
    assert "The positive class is tumor." in (tmp_path / "out" / "index.html").read_text()


def test_the_page_does_not_say_that_a_model_did_not_see_who_lies_in_several_folds(tmp_path):
    lines = [f"s{i},{0.3 + 0.02 * i:.2f},{i % 2}" for i in range(24)]
    said = write(tmp_path, "p.csv", "\n".join(["slide_id,softmax_tumor,fold", *lines]) + "\n")
    for owner, sees in ((lambda i: i // 2, True), (lambda i: i, False)):
        truth = [f"s{i},p{owner(i)},{('normal', 'tumor')[i % 3 > 0]}" for i in range(24)]
        known = write(tmp_path, "m.csv", "\n".join(["slide_id,patient_id,label", *truth]) + "\n")
        wsi("evaluate", said, known, "-o", tmp_path / "out")
        page = (tmp_path / "out" / "index.html").read_text()
        found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]["operating_points"]
        assert ("may have seen the patient" in page, "did not see the patient" in page) == (sees, not sees)
        assert [point["optimistic"] for point in found] == [sees] * 3
        assert "The outputs are not said to be calibrated: a threshold" in page
    (tmp_path / "p.csv").write_text(said.read_text().replace("softmax_", "probability_"))
    wsi("evaluate", said, known, "-o", tmp_path / "out")
    assert "not said to be calibrated: a threshold" not in (tmp_path / "out" / "index.html").read_text()


def test_labels_divided_by_semicolons_are_read(tmp_path):
    found = joined(
        tmp_path, "slide_id,sigmoid_x,sigmoid_y\na,0.9,0.9\nb,0.1,0.2\nc,0.4,0.8\n",
        "slide_id,label\na,x;y\nb,-\nc, y \nd,\n", TableSpec(TaskSpec("multilabel")),
    )  # fmt: skip
    assert found.predictions.truth.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert found.flow[1].excluded == {"no truth in the manifest": ("d",)}


def test_a_truth_of_the_case_is_that_of_its_slides(tmp_path):
    said = "slide_id,case_id,prob\na,k1,0.9\nb,k1,0.8\nc,k2,0.1\n"
    found = joined(tmp_path, said, "case_id,label\nk1,1\nk2,0\nk3,1\n")
    assert found.predictions.truth.tolist() == [1, 1, 0]
    assert found.predictions.patients == ("k1", "k1", "k2")
    assert [step.slides for step in found.flow] == [3, 3, 3]
    assert any("truth is of the case_id" in note for note in found.notes)


@pytest.mark.parametrize("column", ["fold\nA\nA\nB", "origin\nheld-out fold 1\nheld-out folds 1, 7\nheld-out fold 2"])
def test_folds_are_read_where_every_row_names_one(tmp_path, column):
    head, *values = column.split("\n")
    lines = zip("abc", values, strict=True)
    said = f"slide_id,score,{head}\n" + "".join(f'{name},1,"{value}"\n' for name, value in lines)
    folds = joined(tmp_path, said).predictions.folds
    assert folds is not None
    assert folds[0] == folds[1] != folds[2]
    assert joined(tmp_path, said).predictions.repeats == (2 if head == "origin" else 1)
    one_missing = said.replace(values[1], "trained on", 1) if head == "origin" else said.replace("A", "", 1)
    assert joined(tmp_path, one_missing).predictions.folds is None


def test_parquet_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"slide_id": ["a", "b"], "prob": [0.9, None]}), tmp_path / "p.parquet")
    assert [row.cells for row in read_table(tmp_path / "p.parquet").rows] == [
        {"slide_id": "a", "prob": "0.9"}, {"slide_id": "b", "prob": ""},
    ]  # fmt: skip
    write(tmp_path, "broken.parquet", "no parquet")
    with pytest.raises(ManifestError, match="no sound Parquet"):
        read_table(tmp_path / "broken.parquet")


REGRESSION, COX = TableSpec(TaskSpec("regression")), TableSpec(TaskSpec("cox"))
BAD = [
    ("an unknown id", SHARES + "q,0.5,0.5\n", MANIFEST, None, r"1 of 5 ids are not in .*m.csv: q; add them"),
    ("a repeated id", SHARES + "a,0.5,0.5\n", MANIFEST, None, "line 6: a is predicted twice.*line 2; keep one row"),
    ("a repeated slide", SHARES, MANIFEST + "a,p1,tumor,x\n", None, "line 7: a stands there again.*keep one line"),
    ("above 1", "slide_id,prob\na,1.2\nb,0.1\n", MANIFEST, None, "line 2: prob 1.2 is no probability; .*--score"),
    ("below 0", "slide_id,prob\na,-0.2\nb,0.1\n", MANIFEST, None, "prob -0.2 is no probability"),
    ("no sum of 1", SHARES.replace("0.7", "0.9"), MANIFEST, None, r"line 3: .* is 1.2, not 1; give one probability"),
    ("NaN", SHARES.replace("0.7", "nan"), MANIFEST, None, "line 3: softmax_normal 'nan' is no finite number"),
    ("infinity", "slide_id,score\na,inf\nb,0\n", MANIFEST, None, "score 'inf' is no finite number"),
    ("nothing", SHARES.replace("0.7", ""), MANIFEST, None, "line 3: softmax_normal is empty; give a number"),
    ("text", SHARES.replace("0.7", "high"), MANIFEST, None, "'high' is no finite number"),
    ("a decimal comma", SHARES.replace("0.7", '"0,7"'), MANIFEST, None, "'0,7' is no finite.*point for decimals"),
    ("too many cells", SHARES.replace("0.7", "0,7"), MANIFEST, None, "line 3: 4 cells for 3 columns; put quotes"),
    ("no rows", "slide_id,prob\n", MANIFEST, None, "p.csv: it is empty"),
    ("no bytes", "", MANIFEST, None, "p.csv: it is empty"),
    ("no header", "slide_id,,prob\na,1,1\n", MANIFEST, None, "a column has no name"),
    ("two columns of a name", "slide_id,prob,prob\na,1,1\n", MANIFEST, None, "'prob' stands there twice"),
    ("an open quote", 'slide_id,prob\na,"1\n', MANIFEST, None, "it is no CSV"),
    ("no id", "name,prob\na,1\n", MANIFEST, None, "no column names the slides; it has name, prob"),
    ("an empty id", "slide_id,prob\n,1\n", MANIFEST, None, "slide_id is empty"),
    ("no shared id", "case_id,prob\na,1\n", MANIFEST, None, "no column 'case_id'"),
    ("no label at all", SHARES, "slide_id,label\na,\nb,NA\nc,nan\nd,\n", None, "none of its 4 rows has a truth"),
    ("no such target", SHARES, "slide_id,class\na,x\n", None, r"no column 'label' \(--target\); it has"),
    ("no predictions", "slide_id,tumour\na,1\n", MANIFEST, None, "no column holds predictions of normal, tumor"),
    ("a class without column", SHARES, MANIFEST + "f,p9,other,x\n", None, "no column holds predictions"),
    ("one column of three", "slide_id,prob\na,1\n", MANIFEST + "f,p9,other,x\n", None, "need a column each"),
    ("a text to regress", "slide_id,value\na,1\n", MANIFEST, REGRESSION, "'tumor' is no finite number; regression"),
    ("no number said", "slide_id,x\na,1\n", "slide_id,label\na,1\n", REGRESSION, "no column holds the predicted"),
    ("time 0", "slide_id,risk\na,1\n", "slide_id,time,event\na,0,1\n", COX, "time 0 is not above 0"),
    ("time below 0", "slide_id,risk\na,1\n", "slide_id,time,event\na,-3,1\n", COX, "time -3 is not above 0"),
    ("an event of 2", "slide_id,risk\na,1\n", "slide_id,time,event\na,3,2\n", COX, "event '2' is neither 0 nor 1"),
    ("no column of events", "slide_id,risk\na,1\n", "slide_id,time\na,3\n", COX, "no column 'event'"),
    (
        "slides of one patient that differ", "patient_id,prob\np1,1\n", MANIFEST, None,
        "rows of p1 do not agree on its truth: normal and tumor; correct them",
    ),
    (
        "a case of two patients", "case_id,prob\nk,1\n", "case_id,patient_id,label\nk,p1,1\nk,p2,1\nj,p3,0\n", None,
        "do not agree on its patient",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("predictions", "manifest", "spec", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_table_that_cannot_be_judged_is_refused_with_a_remedy(tmp_path, predictions, manifest, spec, message):
    with pytest.raises(ManifestError, match=message) as raised:
        joined(tmp_path, predictions, manifest, spec)
    assert raised.value.args[2], "there is a remedy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no table with the truth is given"),
        (["missing.csv"], "there is no such file"),
        (["m.csv", "--by", "scanner"], "has no column 'scanner'"),
        (["m.csv", "--positive", "cancer"], "'cancer' is no class; choose normal or tumor"),
        (["m.csv", "--operating-point", "sensitivity=high"], "'high' is no number"),
        (["m.csv", "--operating-point", "best"], "'best' is unknown"),
        (["m.csv", "--operating-point", "youden=0.3"], "youden takes no value"),
        (["m.csv", "--alpha", "2"], "alpha: 2.0 is not between 0 and 1"),
        (["m.csv", "--task", "grading"], "'grading' is unknown"),
        (["m.csv", "--task", "ordinal"], "the order of the classes is not known; name them"),
        (["m.csv", "--task", "regression", "--positive", "x"], "regression has no positive class"),
        (["m.csv", "--probability", "softmax_tumor", "--score", "softmax_tumor"], "not both"),
        (["m.csv", "--score", "nothing"], "no column 'nothing' (--score)"),
        (["m.csv", "--compare", "other.csv"], "there is no such file"),
        (["m.csv", "-o", "m.csv"], "it is a file"),
        (["m.csv", "--model", "tumor", "-o", "run"], "it needs the run's folder, and the run's slides alone"),
        (["--model", "tumor"], "it needs the run's folder"),
        (["--model", "tumor", "-o", "run", "--compare", "other.csv"], "--compare: it is for tables"),
        (["--model", "tumor", "-o", "run", "--target", "grade"], "--target: it is for tables"),
    ],
)
def test_a_wrong_command_ends_with_2_and_says_why(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "p.csv", SHARES)
    write(tmp_path, "m.csv", MANIFEST)
    text = wsi("evaluate", "p.csv", *arguments, code=2)
    assert message in text
    assert not (tmp_path / "evaluation").exists()


def test_an_order_needs_no_guess(tmp_path):
    task = TaskSpec("ordinal", classes=("tumor", "normal"))
    assert joined(tmp_path, SHARES, spec=TableSpec(task)).predictions.truth.tolist() == [0, 1, 0]
    with pytest.raises(SpecError, match="order of the classes"):
        joined(tmp_path, SHARES, spec=TableSpec(TaskSpec("ordinal")))


def test_a_table_on_the_edge_is_judged_with_reasons(tmp_path):
    write(tmp_path, "p.csv", SHARES)
    write(tmp_path, "m.csv", "slide_id,label\na,tumor\nb,tumor\n")
    text = wsi("evaluate", tmp_path / "p.csv", tmp_path / "m.csv", "-o", tmp_path / "out", code=2)
    assert "2 of 4 ids are not in" in text
    write(tmp_path, "p.csv", "slide_id,softmax_normal,softmax_tumor\na,0.2,0.8\nb,0.3,0.7\n")
    text = wsi("evaluate", tmp_path / "p.csv", tmp_path / "m.csv", "-o", tmp_path / "out")
    assert "there are not both positives and negatives" in text
    assert "not known" not in (tmp_path / "out" / "index.html").read_text()


def test_a_runs_model_gets_a_report_with_its_worst_errors_and_a_card(trained, tmp_path):
    from jobs.folder import run_facts
    from jobs.model_card import write_card
    from jobs.model_stages import open_model

    for command in ("predict", "heatmap"):
        wsi(command, trained.manifest, "-m", trained.model, "-o", trained.run)
    text = wsi("evaluate", trained.manifest, "-m", trained.model, "-o", trained.run, "--by", "site")
    assert "12 slides of 10 patients: AUROC 0." in text or "AUROC 1." in text
    content = json.loads((trained.run / "predictions" / "tumor.evaluation.json").read_text())
    page = (trained.run / "report" / "evaluation-tumor.html").read_text()
    assert f"{content['metrics']['headline']['value']:.3f}" in page
    assert "Digest of the model" in page
    called, truth = content["metrics"]["confusion"]["counts"], content["metrics"]["bags"]
    errors = truth - called[0][0] - called[1][1]
    assert page.count("<figure ") == page.count("../heatmaps/tumor/") == page.count("data:image/jpeg") == errors
    model = open_model(str(trained.model))
    markdown, _ = write_card(model, tmp_path, run_facts("wsi train", {}), synthetic=True)
    said = markdown.read_text()
    for text in ("efficientnet-lite0 | Apache-2.0", "12 slides of 10 patients", model.mark, model.contract_hash):
        assert text in said, text
