"""What a flow does when its own books, its workers or single parts of a slide fail at an awkward moment."""

import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs import parts
from jobs.claims import Claims
from jobs.config import RunSpec, resolve
from jobs.executors import ExecSpec
from jobs.folder import RunFolder
from jobs.lines import Line
from jobs.manifest import SlideRecord
from jobs.outcome import Outcome, Split, Unit
from jobs.parts import Rows, read_part, write_part
from jobs.peers import Peers
from jobs.receipts import Receipt, append_receipt
from jobs.record import Record
from jobs.run import Watcher, run_stages
from jobs.sessions import Session
from jobs.stages import embed_slide
from jobs.tile_stage import tile_slide
from wsi import SlideError, StoreError
from wsi.synthetic import SyntheticSpec, write_synthetic_slide


def records(*names: str) -> dict[str, SlideRecord]:
    return {name: SlideRecord(name, Path(f"{name}.svs"), name, name) for name in names}


def wait_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """Takes the seconds that its slide's name says."""
    time.sleep(float(record.slide_id.rpartition("-")[2]) / 10)
    return Outcome("done", "mark", 1)


def _begin(folder: RunFolder, name: str) -> None:
    (folder.root / "begun").mkdir(exist_ok=True)
    (folder.root / "begun" / f"{name}-{time.monotonic_ns()}").touch()


def begun(root: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in (root / "begun").iterdir())


def cut_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome | Split:
    _begin(folder, record.slide_id)
    if record.slide_id == "t":
        return Outcome("done", "mark", 1)
    return Split(folder.root / "parts", 2, 2, cut_part, cut_join)


def cut_part(record: SlideRecord, spec: RunSpec, folder: RunFolder, number: int) -> tuple[int, int]:
    _begin(folder, f"{record.slide_id}+{number}")
    if number == 0:
        while not list((folder.root / "begun").glob(f"{record.slide_id}+1-*")):
            time.sleep(0.05)
        raise SlideError(record.path, "it is damaged", "copy it again")
    time.sleep(1)
    os.abort()


def cut_join(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    raise AssertionError("a slide with a failed part is not joined")


def test_books_that_cannot_be_kept_end_the_run_when_several_units_end_at_once(tmp_path):
    line = Line(wait_slide, records("a-0", "b-5", "c-5"))

    def lose_receipts(receipt):
        if not (tmp_path / "aside").exists():
            (tmp_path / "receipts").rename(tmp_path / "aside")
            (tmp_path / "receipts").touch()
            time.sleep(2)  # the two others end meanwhile

    halt = run_stages([line], RunSpec(jobs=ExecSpec(workers=3)), RunFolder(tmp_path), [Watcher(receipt=lose_receipts)])
    assert halt.why is not None
    assert not line.running
    assert not list((tmp_path / "claims").glob("*/*~*"))


def test_workers_that_cannot_be_begun_end_the_run(tmp_path):
    used = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    line = Line(wait_slide, records(*(f"s{number}-5" for number in range(12))))

    def tighten(done):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, limits[1]))

    try:
        tighten(None)
        halt = run_stages([line], RunSpec(jobs=ExecSpec(workers=12)), RunFolder(tmp_path), [Watcher()])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert halt.why is not None
    assert "open files" in halt.why


def test_a_part_that_dies_after_another_has_failed_its_slide_is_not_begun_again(tmp_path):
    line = Line(cut_slide, records("s", "t"))
    run_stages([line], RunSpec(jobs=ExecSpec(workers=2)), RunFolder(tmp_path), [Watcher()])
    assert line.receipts["s"].problem == "it is damaged"
    assert begun(tmp_path) == ["s", "s+0", "s+1", "t"]


def test_claims_say_whose_they_are_also_when_the_disk_is_full_at_the_next_stage(tmp_path):
    folder, spec = RunFolder(tmp_path), RunSpec()
    with Session(folder, spec) as session:
        claims = Claims(tmp_path / "claims", session)
        assert claims.take(Unit("tile", "s")) is None
        token = next((tmp_path / "claims").glob(".*"))
        token.chmod(0o400)
        before = token.stat().st_mtime_ns
        assert claims.take(Unit("embed", "s")) is None
        assert token.stat().st_mtime_ns == before  # all claims are links to it


def missing_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    record.path.stat()
    return Outcome("done", "mark", 1)


def read_again_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    return Outcome("done", "mark", 1)


@pytest.mark.parametrize("is_mounted", [True, False])
def test_slides_that_are_missing_at_the_end_of_a_list_keep_no_other_from_the_next_stage(tmp_path, is_mounted):
    (tmp_path / "slides").mkdir()
    found = {name: replace(one, path=tmp_path / "slides" / one.path) for name, one in records(*"abcdefgh").items()}
    for name in "abc":
        found[name].path.touch()
    if not is_mounted:
        (tmp_path / "slides").rename(tmp_path / "elsewhere")
    lines = [Line(missing_slide, found), Line(read_again_slide, dict(found))]
    spec = RunSpec(jobs=ExecSpec("serial"))
    halt = run_stages(lines, spec, RunFolder(tmp_path / "run"), [Watcher(), Watcher()])
    assert (halt.why is None) == is_mounted
    assert list(lines[1].receipts) == (["a", "b", "c"] if is_mounted else [])


def test_what_a_living_session_did_before_is_looked_at_and_what_it_failed_at_is_not_tried(tmp_path):
    folder, spec = RunFolder(tmp_path), RunSpec()
    with Session(folder, spec) as first:
        for name, status in {"done": "done", "failed": "failed"}.items():
            append_receipt(folder.receipts("tile"), Receipt(name, "tile", status), first.id)
        time.sleep(0.01)  # sessions are named by the millisecond
        with Session(folder, spec) as second:
            peers = Peers(folder, second)
            peers.look("tile")
            append_receipt(folder.receipts("tile"), Receipt("later", "tile", "done"), first.id)
            peers.look("tile", now=True)
            known = [name for name in ("done", "failed", "later") if peers.receipt("tile", name)]
    assert known == ["failed", "later"]


def test_what_a_peer_predicted_of_a_bag_with_other_slides_is_looked_at(tmp_path):
    folder, spec = RunFolder(tmp_path), RunSpec()
    alone, other = records("alone", "other").values()
    with Session(folder, spec) as first:
        time.sleep(0.01)
        with Session(folder, spec) as second:
            record = Record.of(second, spec, folder)
            record.peers.look("predict")
            append_receipt(folder.receipts("predict"), Receipt("alone", "predict", "done"), first.id)
            record.peers.look("predict", now=True)
            assert record.known("predict", alone) is not None
            assert record.known("predict", replace(alone, others=(other,))) is None


def test_a_part_with_any_bit_flipped_is_as_it_was_or_is_removed(tmp_path):
    path, rows = tmp_path / "part-00000.npz", Rows(np.arange(24, dtype=np.float16).reshape(3, 1, 8), np.ones(3, bool))
    write_part(path, rows)
    sound = path.read_bytes()
    for place in range(len(sound)):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :])
        try:
            found = read_part(path)
        except StoreError:
            assert not path.exists()
        else:
            assert np.array_equal(found.vectors, rows.vectors)
            assert found.vectors.dtype == rows.vectors.dtype
            assert np.array_equal(found.ok, rows.ok)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_signs_of_life_go_on_when_what_is_called_after_them_fails_or_hangs(tmp_path):
    called, signs = [], set()

    def hang_then_fail(session: Session) -> None:
        called.append(session.id)
        time.sleep(0.5)
        raise ValueError("a file of another version")

    with Session(RunFolder(tmp_path), RunSpec(jobs=ExecSpec(lease_s=1)), each=hang_then_fail) as session:
        for _ in range(500):
            signs.add(session.path.stat().st_mtime_ns)
            if len(signs) == 8:
                break
            time.sleep(0.02)
    assert len(signs) == 8
    assert called == [session.id]
    assert session.facts["ended"]


def test_sessions_that_cut_a_slide_into_parts_of_two_sizes_leave_each_other_theirs(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "batch_tiles", lambda tile_px: 4)  # so that a small slide has parts
    write_synthetic_slide(tmp_path / "s.svs", SyntheticSpec(width_px=1024, height_px=1024))
    record, folder = SlideRecord("s", tmp_path / "s.svs", "s", "s"), RunFolder(tmp_path / "run")
    first, second = (
        resolve({"tile": {"tissue": {"method": "none"}}, "jobs": {"executor": "serial", "shard_tiles": tiles}})
        for tiles in (4, 8)
    )
    assert tile_slide(record, first, folder).tiles == 16
    mine = embed_slide(record, first, folder)
    assert mine.parts == 4
    mine.part(record, first, folder, 0)
    theirs = embed_slide(record, second, folder)
    assert theirs.parts == 2
    assert mine.has(0)
    for number in range(theirs.parts):
        theirs.part(record, second, folder, number)
    assert theirs.join(record, second, folder).status == "done"
    assert mine.join(record, first, folder).status == "skipped"
    assert not list((tmp_path / "run").rglob(Split.name_of(0)))
