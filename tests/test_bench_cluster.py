"""The parts of the benchmark of many slides, each as small as it comes; and that its judges see what is wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cluster_common import LOG, NOTHING, Work, keep, known, make_slides
from benchmarks.cluster_faults import Folder, Track
from benchmarks.cluster_simulate import simulate
from benchmarks.cluster_virtual import Cluster, Split

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAM = REPOSITORY / "benchmarks" / "bench_cluster.py"


def bench(part: str, folder: Path) -> dict:
    """Run a part by itself, as small as it comes; what it found."""
    words = [sys.executable, PROGRAM, part, "--small", "--json", folder / "found.json", "--scratch", folder / "scratch"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list((folder / "scratch").iterdir())
    return known(folder / "found.json")[part]


def test_the_engine_is_measured_beside_the_bare_work(tmp_path):
    found = bench("overhead", tmp_path)
    assert set(found["stages"]) == {"nothing", "tile", "embed", "predict"}
    for kinds in found["stages"].values():
        assert kinds["serial"]["wall_ms"] > 0
        assert kinds["bare"]["wall_ms"] <= kinds["serial"]["wall_ms"] * 10  # one unit, and no loop forgotten
    assert 0 < found["scheduler"]["traced_bytes"] < 20_000


@pytest.mark.parametrize("part", ["kills", "restarts"])
def test_what_is_left_of_killed_runs_is_judged(tmp_path, part):
    for one in bench(part, tmp_path)["rounds"]:
        assert [one[fact] for fact in ("missing", "torn", "beyond", "duplicate_rows", "undone", "left")] == [0] * 6
        assert one["extra"] <= one["killed"]


@pytest.mark.parametrize("sessions", [1, 3])
def test_a_simulated_cluster_does_every_unit_once_though_workers_are_lost(tmp_path, sessions):
    asked = Cluster(slides=60, sessions=sessions, workers=8, preempted=0.9999, back_s=30.0)
    found = simulate(asked, tmp_path)
    assert (found["lost"], found["unfinished_units"], found["twice"], found["claims_left"]) == (0, 0, 0, 0)
    assert found["killed"] > 0
    assert 0.3 < found["utilisation"] <= 1.0
    assert found["utilisation"] <= found["utilisation_of_available"]
    receipts = [path.name for path in (tmp_path / "receipts").iterdir()]
    assert len(receipts) == 2 * sessions  # they shared the work, at each of two stages


def test_sessions_that_die_lose_their_claims_to_others_and_nothing_is_lost(tmp_path):
    asked = Cluster(slides=60, sessions=3, workers=4, preempted=0.0, session_preempted=0.9999, back_s=60.0)
    found = simulate(asked, tmp_path)
    assert found["lost_sessions"] > 0
    assert (found["lost"], found["unfinished_units"], found["twice"]) == (0, 0, 0)


def test_a_simulation_that_loses_a_part_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Split, "has", lambda split, number: number == 2)  # as if it were there
    found = simulate(Cluster(slides=6, workers=2, preempted=0.0), tmp_path)
    assert found["lost"] == 6
    assert found["unfinished_units"] > 0


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Folder:
    folder = Folder.make(tmp_path_factory.mktemp("judged"), 3, 0)
    folder.learn()
    return folder


def damage(store: Path) -> None:
    chunk = next(path for path in sorted(store.rglob("*")) if path.is_file() and path.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(("fault", "fact"), [("remove", "missing"), ("damage", "torn"), ("claim", "left")])
def test_the_judge_sees_what_is_wrong_with_a_run(learned, fault, fact):
    run = learned.scratch / fault
    shutil.copytree(learned.scratch / "truth", run)
    shutil.copy(learned.log("truth"), learned.log(fault))
    store = sorted(run.glob("embeddings/*/*.zarr"))[0]
    if fault == "remove":
        shutil.rmtree(store)
    elif fault == "damage":
        damage(store)
    else:
        (run / "claims" / "embed").mkdir(parents=True, exist_ok=True)
        (run / "claims" / "embed" / "small00000~0").touch()
    found = learned.judge(fault, 0)
    assert found.pop(fact) == 1
    assert not any(found.values())


def test_work_that_is_done_twice_is_counted_and_finding_it_done_is_not(learned):
    shutil.copytree(learned.scratch / "truth", learned.scratch / "again")
    text = learned.log("truth").read_text()
    line = text.splitlines()[0].removeprefix("+ ")
    learned.log("again").write_text(f"{text}+ {line}\n- {line} skipped\n+ {line}\n")
    found = learned.judge("again", 0)
    assert (found["extra"], found["undone"]) == (1, 0)


def test_units_of_a_process_that_did_not_end_are_known(tmp_path):
    log = tmp_path / "log"
    log.write_text("+ 7 tile a slide\n+ 8 tile b slide\n- 7 tile a slide done\n+ 7 tile c slide\n")
    work = Work.of(log)
    assert (work.unfinished(7), work.unfinished(8), work.unfinished(9), work.unfinished()) == (1, 1, 0, 2)


def test_growth_is_of_the_second_half(tmp_path):
    track = Track("worker", list(range(100)), [1000.0 + 50 * min(unit, 40) for unit in range(100)], [9] * 100)
    assert abs(track.figures()["kib_per_unit"]) < 1e-6
    track.rss_kib = [1000.0 + 2 * unit for unit in range(100)]
    assert track.figures()["kib_per_unit"] == pytest.approx(2.0)
    assert track.figures()["max_files"] == 9


def test_slides_of_one_picture_are_different_slides(tmp_path):
    from wsi.identity import slide_identity

    paths = make_slides(tmp_path / "slides", 3, 256)
    assert len({slide_identity(path) for path in paths}) == 3
    before = paths[0].stat().st_mtime_ns
    assert make_slides(tmp_path / "slides", 3, 256)[0].stat().st_mtime_ns == before


def test_what_parts_find_is_kept_beside_each_other(tmp_path):
    keep(tmp_path / "found.json", "one", {"a": 1})
    keep(tmp_path / "found.json", "two", {"b": 2})
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["one"]["a"], found["two"]["b"]) == (1, 2)
    assert found["one"]["processors"] >= 1
    keep(None, "three", {})


def test_the_backbone_that_computes_nothing_is_of_the_benchmark_only():
    from embedding.backbones import BACKBONES

    assert NOTHING not in BACKBONES
    assert LOG not in os.environ
