import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsi.machine import machine_id
from wsi.publish import OLD, appear, appear_file, append_line, clear_drafts, fingerprint, read_lines, write_json

DEAD, HERE = 999_999_999, machine_id()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.zarr"
    with appear(target) as draft:
        (draft / "x").write_text("1")
        assert not target.exists()
    with pytest.raises(KeyError), appear(target) as draft:  # noqa: PT012
        (draft / "x").write_text("2")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    assert (target / "x").read_text() == "1"
    with appear(target) as draft:
        (draft / "y").write_text("3")
    assert [path.name for path in target.iterdir()] == ["y"]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError), appear_file(tmp_path / "a.csv") as draft:  # noqa: PT012
        draft.write_text("half")
        raise ValueError
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "a.json", {"µ": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "µ": 1\n}\n'


def test_what_a_killed_process_put_aside_takes_its_name_again(tmp_path):
    (tmp_path / f".draft-{HERE}-{DEAD}-{OLD}-my-slide.zarr").mkdir()
    (tmp_path / f".draft-{HERE}-{DEAD}-{OLD}-other.zarr").mkdir()
    (tmp_path / "other.zarr").mkdir()
    (tmp_path / f".draft-{HERE}-{DEAD}-ab12cd-new.zarr").mkdir()
    (tmp_path / f".draft-{HERE}-{DEAD}-ab12cd-table.csv").write_text("half")
    (tmp_path / f".draft-{HERE}-{os.getpid()}-ab12cd-mine.zarr").mkdir()
    (tmp_path / f".draft-elsewhere-{DEAD}-ab12cd-theirs.zarr").mkdir()  # another host's process may well live
    assert clear_drafts(tmp_path) == 4
    left = {path.name for path in tmp_path.iterdir()} - {f".draft-elsewhere-{DEAD}-ab12cd-theirs.zarr"}
    assert left == {"my-slide.zarr", "other.zarr", f".draft-{HERE}-{os.getpid()}-ab12cd-mine.zarr"}


def test_a_fingerprint_is_stable_and_sees_every_value():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert len({fingerprint("a"), fingerprint("a", None), fingerprint("b"), fingerprint(1), fingerprint(1.5)}) == 5


def test_lines_survive_kills_and_odd_names(tmp_path):
    path = tmp_path / "receipts" / "tile.jsonl"
    append_line(path, {"slide_id": "a"})
    with path.open("a") as stream:
        stream.write('{"slide_id": "b", "sta')  # killed while it wrote
    odd = "line\u2028separator, not UTF-8 \udcff, µ"
    append_line(path, {"slide_id": "c", "problem": odd})
    append_line(path, {"slide_id": "d"})
    assert [line["slide_id"] for line in read_lines(path)] == ["a", "c", "d"]
    assert read_lines(path)[1]["problem"] == odd
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_draft_of_a_process_that_ended_but_was_not_waited_for_is_cleared(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    draft = tmp_path / f".draft-{HERE}-{process.pid}-ab-s.zarr"
    draft.mkdir()
    until = time.monotonic() + 30
    while draft.exists() and time.monotonic() < until:
        clear_drafts(tmp_path)
        time.sleep(0.05)
    assert not draft.exists()  # while the process is a zombie: only now is its end asked for
    assert process.wait() == 0
