import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsi.machine import machine_id
from wsi.publish import (
    OLD,
    appear,
    appear_file,
    append_line,
    clear_drafts,
    damaged_lines,
    fingerprint,
    read_lines,
    seal_fits,
    write_json,
)

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
    theirs = f".draft-0123abcd-{DEAD}-ab12cd-theirs.zarr"
    (tmp_path / theirs).mkdir()  # another machine's process may well live
    assert clear_drafts(tmp_path) == 4
    left = {path.name for path in tmp_path.iterdir()} - {theirs}
    assert left == {"my-slide.zarr", "other.zarr", f".draft-{HERE}-{os.getpid()}-ab12cd-mine.zarr"}


def test_drafts_of_another_machine_are_cleared_when_nobody_is_there_and_nothing_was_written_for_long(tmp_path):
    asked = []

    def gone(machine):
        asked.append(machine)
        return machine == "0123abcd"

    names = [
        f".draft-{machine}-{os.getpid()}-{kind}-{name}"
        for machine, kind, name in (
            ("0123abcd", "ab", "stale.zarr"),
            ("0123abcd", "ab", "fresh.zarr"),
            ("0123abcd", OLD, "aside.zarr"),
            ("some_host", "ab", "alive.zarr"),  # of older versions, by name
        )
    ]
    long_ago = time.time() - 3700
    for name in names:
        (tmp_path / name / "xy").mkdir(parents=True)
        (tmp_path / name / "xy" / "0").write_text("half")
        for place in (tmp_path / name, tmp_path / name / "xy", tmp_path / name / "xy" / "0"):
            os.utime(place, (long_ago, long_ago))
    now_and_then = tmp_path / names[1] / "xy" / "0"
    now_and_then.write_text("half of it")  # the folders above do not show it
    assert clear_drafts(tmp_path, gone) == 2
    assert {path.name for path in tmp_path.iterdir()} == {names[1], names[3], "aside.zarr"}
    assert set(asked) == {"0123abcd", "some_host"}
    os.utime(now_and_then, (long_ago, long_ago))
    assert clear_drafts(tmp_path, gone, stale_s=7200) == 0
    assert clear_drafts(tmp_path, gone) == 1


def test_an_old_folder_comes_back_when_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    real, target = os.rename, tmp_path / "a.zarr"
    with appear(target) as draft:
        (draft / "x").write_text("1")

    def failing(source, place):
        if Path(place) == target and f"-{OLD}-" not in Path(source).name:
            raise OSError(5, "the disk is gone")
        real(source, place)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="the disk is gone"), appear(target) as draft:
        (draft / "x").write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    assert (target / "x").read_text() == "1"


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


def test_a_line_that_was_changed_is_known_by_its_number(tmp_path):
    path = tmp_path / "tile.jsonl"
    contents = [{"slide_id": "a", "problem": 'µ \udcff, "crc": "0"'}, {"slide_id": "b"}, {"slide_id": "c"}]
    for content in contents:
        append_line(path, content, checked=True)
    append_line(path, {"slide_id": "d"})  # of an older version
    assert read_lines(path) == [*contents, {"slide_id": "d"}]
    assert damaged_lines(path) == []
    assert damaged_lines(tmp_path / "none.jsonl") == []
    sound = path.read_bytes()
    second, third = (sound.index(b'{"slide_id": "%s"' % name) for name in (b"b", b"c"))
    for place in range(second, third):
        for flip in (1 << place % 8, 32, 255):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ flip]) + sound[place + 1 :])
            assert 2 in damaged_lines(path), (place, flip)
    path.write_bytes(sound.replace(b'"b"', b'"x"'))
    assert damaged_lines(path) == [2]
    path.write_bytes(sound[: third - 10] + b"\n" + sound[third:])
    assert damaged_lines(path) == [2]
    path.write_bytes(sound[: third - 10])
    assert damaged_lines(path) == [2]


def test_every_changed_byte_of_sealed_json_is_noticed(tmp_path):
    path = tmp_path / "a.json"
    write_json(
        path, {"slide_id": "a", "checksum of": {"checksum": "12345678"}, "values": [0.5, None, "µ"]}, sealed=True
    )
    sound = path.read_bytes()
    assert seal_fits(sound) is True
    for place in range(len(sound)):
        for flip in range(1, 256, 7):
            changed = sound[:place] + bytes([sound[place] ^ flip]) + sound[place + 1 :]
            try:
                json.loads(changed)
            except ValueError:
                continue
            assert seal_fits(changed) is False, (place, flip)
    write_json(path, {"slide_id": "a", "checksum of": 1})
    assert seal_fits(path.read_bytes()) is None
