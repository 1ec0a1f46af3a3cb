"""wsi status on run folders in every state, and on a real run."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_older_text

from tests.commands import slides, wsi
from tests.run_folders import AFAR, Writer, at, stage

IDS = [f"s{number:02d}" for number in range(10)]
PROGRAM = [sys.executable, "-c", "from cli.main import main; main()"]


@pytest.fixture
def at_work(tmp_path) -> Path:
    """A run with a session at work, one that died, slides that failed, and a slide that takes long."""
    one = Writer(tmp_path, "one").write_many("tile", IDS[:6], tiles=100)
    problem, remedy = "timeout: no tile for 120 s", "see that [bold] the disk answers"
    one.write("tile", IDS[6], "failed", cause="timeout", problem=problem, remedy=remedy)
    slow = {"stage": "tile", "slide_id": IDS[7], "part": None, "seconds": 300.0, "tiles": 5, "of": 4000}
    tile = stage(10, done=6, failed=1, running=1, tiles=600, active_s=10, busy_s=8, room=2)
    one.say(stages={"tile": tile}, running=[slow], dashboard="http://127.0.0.1:8787/status")
    Writer(tmp_path, "dead").say(host="node07", machine=AFAR, ago_s=4000, started=at(time.time() - 9000))
    return tmp_path


def ended(root: Path, **counts: int) -> Path:
    one = Writer(root, "one").write_many("tile", IDS[: counts.get("done", 0)])
    for slide in IDS[counts.get("done", 0) :][: counts.get("failed", 0)]:
        one.write("tile", slide, "failed", problem="torn: it ends early")
    one.say(ended=at(time.time()), exit=1, stages={"tile": stage(10, **counts)})
    return root


def screen(*arguments: object, columns: int) -> str:
    """What a terminal of so many columns shows, without its colours."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    program = subprocess.Popen([*PROGRAM, *map(str, arguments)], stdout=theirs, stderr=theirs, stdin=theirs, env=env)
    os.close(theirs)
    shown = b""
    while True:
        try:
            added = os.read(ours, 65536)
        except OSError:  # how Linux says that nobody writes there any more
            break
        if not added:
            break
        shown += added
    program.wait()
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def test_a_run_at_work_is_shown(at_work):
    text = " ".join(wsi("status", at_work).split())
    for words in (
        "1 command at work",
        "tile 10 6 0 1 1 2",
        "limits tile: its workers are busy 40% of the time",
        "dashboard http://127.0.0.1:8787/status",
        "died node07, process",
        "longest s07 (tile) 5 min, ",
        "5 of 4,000 tiles",
        "1 × hung: given up at the deadline",
        "→ see that [bold] the disk answers",
        "running: 7 of 10 slides have a result (6 done or empty, 1 failed), 3 to come",
    ):
        assert words in text


@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_is_wider_than_the_terminal(columns, at_work):
    lines = screen("status", at_work, columns=columns).splitlines()
    assert max(len(line) for line in lines) <= columns
    assert any(line.startswith("tile") and line.rstrip().endswith(("s", "min")) for line in lines)
    assert any("━" in line for line in lines) == (columns == 120)


@pytest.mark.parametrize(
    ("counts", "code", "verdict"),
    [
        ({"done": 10}, 0, "complete: 10 of 10 slides have a result (10 done or empty, 0 failed)"),
        ({"done": 9, "failed": 1}, 1, "complete: 10 of 10 slides have a result (9 done or empty, 1 failed)"),
        ({"done": 7}, 1, "not complete: 7 of 10 slides have a result (7 done or empty, 0 failed), 3 missing"),
    ],
)
def test_the_exit_code_says_whether_anything_is_missing(counts, code, verdict, tmp_path):
    assert verdict in " ".join(wsi("status", ended(tmp_path, **counts), code=code).split())


def test_where_no_run_is_the_exit_code_is_2(tmp_path):
    text = wsi("status", tmp_path / "none", code=2)
    assert "no run there" in text
    assert "--out" in text


def test_programs_read_the_same(at_work):
    found = json.loads(wsi("status", at_work, "--json"))
    assert found["state"] == "running"
    assert found["slides"] == {"total": 10, "done": 6, "failed": 1, "missing": 3}
    assert found["causes"] == {"hung: given up at the deadline": 1}
    assert [one["state"] for one in found["sessions"]] == ["lost", "at work"]


def test_openmetrics_are_as_its_own_reader_and_the_older_one_want_them(at_work):
    file = at_work / "collector" / "wsi.prom"
    wsi("status", at_work, "--openmetrics", file)
    for read in (read_openmetrics, read_older_text):
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in read(file.read_text())
            for sample in family.samples
        }
        assert samples["slidestream_slides", "tile", "done"] == 6
        assert samples["slidestream_slides", "tile", "failed"] == 1
        assert samples["slidestream_tiles_total", "tile"] == 600
        assert samples["slidestream_sessions", "at_work"] == 1
        assert samples["slidestream_sessions", "lost"] == 1
        assert samples["slidestream_slides_missing",] == 3
        assert samples["slidestream_eta_seconds",] > 0
    assert [path.name for path in file.parent.iterdir()] == ["wsi.prom"]


def test_a_file_of_figures_that_cannot_be_written_is_said(at_work):
    (at_work / "file").write_text("")
    assert "cannot be written" in wsi("status", at_work, "--openmetrics", at_work / "file" / "wsi.prom", code=2)


def test_watching_ends_with_the_run(at_work):
    command = [*PROGRAM, "status", str(at_work), "--watch", "--every", "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        for line in watcher.stdout:
            if line.startswith("running:"):
                break
        one = Writer(at_work, "one").write_many("tile", IDS)
        one.say(ended=at(time.time()), exit=0, stages={"tile": stage(10, done=10)})
        rest = watcher.stdout.read()
        assert watcher.wait() == 0
    assert rest.rstrip().endswith("complete: 10 of 10 slides have a result (10 done or empty, 0 failed)")


def test_no_torch_and_no_store_library_is_loaded(at_work):
    code = "import sys; from cli.main import main\ntry: main()\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "status", str(at_work)], capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "rich" in loaded
    assert not loaded & {"torch", "zarr", "timm", "dask", "distributed", "sklearn", "pandas", "scipy", "skimage", "cv2"}


def test_a_real_run_is_told_from_its_folder(tmp_path):
    folder = slides(tmp_path / "slides", "a", "b")
    (folder / "torn.svs").write_bytes((folder / "a.svs").read_bytes()[:3000])
    run = tmp_path / "run"
    wsi("tile", folder, "--out", run, code=1)
    found = json.loads(wsi("status", run, "--json", code=1))
    assert found["state"] == "complete"
    assert found["slides"] == {"total": 3, "done": 2, "failed": 1, "missing": 0}
    assert found["failures"][0]["slide_id"] == "torn"
    assert found["stages"][0]["tiles"] > 0
    assert json.loads((run / "status.json").read_text())["schema"] == found["schema"]
    (folder / "torn.svs").unlink()
    wsi("tile", folder, "--out", run)
    assert "complete: 2 of 2 slides have a result (2 done or empty, 0 failed)" in wsi("status", run)


def test_slides_that_a_killed_run_left_are_named(tmp_path):
    folder, run = slides(tmp_path / "slides", "a", "b"), tmp_path / "run"
    recipe = tmp_path / "often.yaml"
    recipe.write_text("jobs: {lease_s: 1}\n")  # a sign of life eight times a second
    words = ["tile", str(folder), "--out", str(run), "--config", str(recipe)]
    with subprocess.Popen([*PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        while '"queued"' not in "".join(path.read_text() for path in run.glob("sessions/2*.json")):
            assert program.poll() is None
        program.kill()  # before its first worker has loaded its modules
    text = " ".join(wsi("status", run, code=1).split())
    assert "nobody is at work" in text
    assert "died" in text
    assert "missing a, b" in text
    assert "not complete: 0 of 2 slides have a result" in text
