import os

import pytest

from wsi.publish import OLD, appear, appear_file, clear_drafts, fingerprint, write_json

DEAD = 999_999_999


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
    (tmp_path / f".draft-{DEAD}-{OLD}-my-slide.zarr").mkdir()
    (tmp_path / f".draft-{DEAD}-{OLD}-other.zarr").mkdir()
    (tmp_path / "other.zarr").mkdir()
    (tmp_path / f".draft-{DEAD}-ab12cd-new.zarr").mkdir()
    (tmp_path / f".draft-{DEAD}-ab12cd-table.csv").write_text("half")
    (tmp_path / f".draft-{os.getpid()}-ab12cd-mine.zarr").mkdir()
    assert clear_drafts(tmp_path) == 4
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"my-slide.zarr", "other.zarr", f".draft-{os.getpid()}-ab12cd-mine.zarr"}


def test_a_fingerprint_is_stable_and_sees_every_value():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert len({fingerprint("a"), fingerprint("a", None), fingerprint("b"), fingerprint(1), fingerprint(1.5)}) == 5
