"""Slides read from copies on a local disk: nothing but speed may differ, and the disk is never filled beyond bounds."""

import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jobs.config import resolve
from jobs.folder import RunFolder
from jobs.manifest import SlideRecord
from jobs.stager import Stager
from jobs.stages import embed_slide
from jobs.staging import NoRoomError, SlideCache, files_of, original_words
from jobs.tile_stage import tile_slide
from tests.commands import section
from tests.dicom_slides import DicomOptions, write_dicom, write_pyramid
from tests.range_server import range_server
from tests.test_wsi_ome_zarr import write_ngff
from wsi import SlideError
from wsi.machine import machine_id
from wsi.synthetic import SyntheticSpec, write_synthetic_slide

MB = 1_000_000


def slide(folder: Path, name: str, size: int = MB) -> SlideRecord:
    """A record of a file of noise."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.svs"
    path.write_bytes(np.random.default_rng(len(name) + ord(name[0])).bytes(size))
    return SlideRecord(name, path, name, name)


def occupied(cache: Path) -> int:
    return sum(file.stat().st_size for file in cache.rglob("*") if file.is_file() and file.name != "staged.json")


def copies(cache: Path) -> list[str]:
    return sorted(file.name for file in cache.glob("slidestream-????????????/slide/*"))


def stores(run: Path) -> dict[str, bytes]:
    """Every file of the run's stores, by path."""
    kinds = ("tiles", "embeddings")
    return {str(file.relative_to(run)): file.read_bytes() for kind in kinds for file in (run / kind).rglob("*")
            if file.is_file()}  # fmt: skip


def place_of_kind(kind: str, folder: Path) -> Path:
    if kind == "svs":
        write_synthetic_slide(folder / "s.svs", SyntheticSpec(width_px=700, height_px=700))
        return folder / "s.svs"
    image = section(700, 700, (100, 100, 600, 600))
    if kind == "dicom":
        other = write_dicom(folder / "other.dcm", image[:256, :256], DicomOptions(series="9.9"))
        assert other.exists()
        write_pyramid(folder, [image, image[::2, ::2]])
        return sorted(file for file in folder.glob("*.dcm") if file.name != "other.dcm")[0]
    if kind == "dicom folder":
        write_pyramid(folder / "s", [image, image[::2, ::2]])
        return folder / "s"
    return write_ngff(folder / "s.ome.zarr", [np.moveaxis(pixels, -1, 0) for pixels in (image, image[::2, ::2])])


@pytest.mark.parametrize("kind", ["svs", "dicom", "dicom folder", "ome-zarr", "url"])
def test_results_are_bit_identical_with_and_without_a_copy(kind, tmp_path):
    (tmp_path / "slides").mkdir()
    with range_server(tmp_path / "slides") as server:
        place = place_of_kind("svs" if kind == "url" else kind, tmp_path / "slides")
        record = SlideRecord("s", server.url("s.svs") if kind == "url" else place, "s", "s")
        spec = resolve({"jobs": {"executor": "serial"}, "tile": {"tile_px": 128}, "patches": "raw"})
        cache, found = SlideCache(tmp_path / "cache"), {}
        for run in ("plain", "copied"):
            outcomes = []
            for stage in (tile_slide, embed_slide):
                if run == "plain":
                    outcomes.append(stage(record, spec, RunFolder(tmp_path / run)))
                else:
                    with cache.staged(record) as copy:
                        assert Path(copy.path).is_relative_to(tmp_path / "cache")
                        server.forget()
                        outcomes.append(stage(copy, spec, RunFolder(tmp_path / run)))
                        assert not server.asked
            assert [one.status for one in outcomes] == ["done", "done"]
            found[run] = stores(tmp_path / run), [(one.fingerprint, one.tiles) for one in outcomes]
    assert found["plain"][1] == found["copied"][1]
    assert found["plain"][0].keys() == found["copied"][0].keys()
    differing = [name for name, content in found["plain"][0].items() if found["copied"][0][name] != content]
    assert not differing


def test_a_slide_is_copied_with_all_its_files(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name in ("a.mrxs", "a/Slidedat.ini", "a/deep/Data0.dat", "b.mrxs", "c.vms", "c-1.jpg", "other.jpg"):
        (tmp_path / name).write_text("ImageFile=c-1.jpg" if name == "c.vms" else name)
    assert sorted(files_of(tmp_path / "a.mrxs").sizes) == ["a.mrxs", "a/Slidedat.ini", "a/deep/Data0.dat"]
    assert sorted(files_of(tmp_path / "c.vms").sizes) == ["c-1.jpg", "c.vms"]
    with SlideCache(tmp_path / "cache").staged(SlideRecord("a", tmp_path / "a.mrxs", "a", "a")) as copy:
        assert (Path(copy.path).parent / "a" / "deep" / "Data0.dat").read_text() == "a/deep/Data0.dat"
        assert not (Path(copy.path).parent / "b.mrxs").exists()


def test_a_lost_file_of_a_dicom_slide_is_refused_from_the_copy_too(tmp_path):
    image = section(512, 512, (0, 0, 512, 512))
    write_pyramid(tmp_path / "s", [image, image[::2, ::2]])
    named = min((tmp_path / "s").glob("*.dcm"))
    (tmp_path / "s" / "lost.dcm").write_bytes(bytes(5000))
    record, spec = SlideRecord("s", named, "s", "s"), resolve({"tile": {"tile_px": 128}})
    with pytest.raises(SlideError) as plain:
        tile_slide(record, spec, RunFolder(tmp_path / "run"))
    with SlideCache(tmp_path / "cache").staged(record) as copy, pytest.raises(SlideError) as copied:
        tile_slide(copy, spec, RunFolder(tmp_path / "run"))
    assert str(tmp_path / "cache") in str(copied.value)
    assert original_words(str(copied.value), record, copy) == str(plain.value)


def test_copies_never_take_more_than_the_limit_and_the_longest_unused_goes_first(tmp_path):
    records = [slide(tmp_path / "slides", name) for name in ("a", "bb", "ccc", "dddd")]
    cache = SlideCache(tmp_path / "cache", limit_bytes=int(2.5 * MB))
    for record in (*records[:2], records[0], records[2]):  # a is used again before ccc needs room
        with cache.staged(record) as copy:
            assert Path(copy.path).read_bytes() == Path(record.path).read_bytes()
        assert occupied(tmp_path / "cache") <= 2.5 * MB
        time.sleep(0.02)
    assert copies(tmp_path / "cache") == ["a.svs", "ccc.svs"]
    held = [cache.hold(record) for record in (records[0], records[2])]
    with pytest.raises(NoRoomError):
        cache.hold(records[3])
    with cache.staged(records[3]) as record:
        assert record == records[3]
    cache.clear()
    assert copies(tmp_path / "cache") == ["a.svs", "ccc.svs"]  # in use
    for hold in held:
        hold.release()
    cache.clear()
    assert not list((tmp_path / "cache").iterdir())


def test_a_slide_larger_than_the_limit_is_read_where_it_lies_which_is_said_once(tmp_path, caplog):
    cache = SlideCache(tmp_path / "cache", limit_bytes=MB // 2)
    with caplog.at_level(logging.WARNING, "jobs.staging"):
        for name in ("a", "bb"):
            record = slide(tmp_path / "slides", name)
            with cache.staged(record) as copy:
                assert copy == record
    assert len(caplog.records) == 1
    assert "larger than" in caplog.text


def test_a_slide_that_is_not_there_or_no_file_is_left_to_its_reader(tmp_path):
    os.mkfifo(tmp_path / "pipe.svs")
    cache = SlideCache(tmp_path / "cache")
    for name in ("pipe", "absent"):
        record = SlideRecord(name, tmp_path / f"{name}.svs", name, name)
        with cache.staged(record) as copy:
            assert copy == record
    assert not list((tmp_path / "cache").iterdir())


def stage_on_a_full_disk(cache: Path, record: SlideRecord) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (MB // 2, MB // 2))  # writing beyond raises what a full disk raises
    with SlideCache(cache).staged(record) as copy:
        assert copy == record
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_on_a_full_disk_slides_are_read_where_they_lie(tmp_path):
    child = multiprocessing.get_context("spawn").Process(
        target=stage_on_a_full_disk, args=(tmp_path / "cache", slide(tmp_path / "slides", "a"))
    )
    child.start()
    child.join()
    assert child.exitcode == 0


def test_a_slide_that_changed_is_copied_again_and_one_that_did_not_is_not(tmp_path):
    record, cache = slide(tmp_path / "slides", "a"), SlideCache(tmp_path / "cache")

    def made_ns() -> int:
        with cache.staged(record) as copy:
            assert Path(copy.path).read_bytes() == Path(record.path).read_bytes()
            return Path(copy.path).stat().st_mtime_ns

    first = made_ns()
    assert made_ns() == first
    Path(record.path).write_bytes(b"other" * 1000)
    second = made_ns()
    assert second > first
    os.utime(record.path, (1, 1))
    assert made_ns() > second
    assert copies(tmp_path / "cache") == ["a.svs"]


def test_a_slide_that_changes_while_it_is_copied_is_not_staged(tmp_path):
    record = slide(tmp_path / "slides", "a", 20 * MB)

    def grow() -> bool:
        with Path(record.path).open("ab") as file:
            file.write(b"more")
        return False

    assert SlideCache(tmp_path / "cache").hold(record, grow) is None
    assert not list((tmp_path / "cache").iterdir())


CRASH = """
import os, signal, sys
from pathlib import Path
from jobs.manifest import SlideRecord
from jobs.staging import SlideCache
cache = SlideCache(sys.argv[1])
cache.hold(SlideRecord("a", Path(sys.argv[2]), "a", "a"))
cache.hold(SlideRecord("b", Path(sys.argv[3]), "b", "b"), lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_a_killed_process_left_is_swept_and_its_whole_copies_are_used(tmp_path):
    a, b = slide(tmp_path / "slides", "a"), slide(tmp_path / "slides", "bb")
    command = [sys.executable, "-c", CRASH, str(tmp_path / "cache"), str(a.path), str(b.path)]
    assert subprocess.run(command, check=False, cwd=Path(__file__).parent.parent).returncode == -signal.SIGKILL
    left = {path.name.partition(".")[2].partition("-")[0] for path in (tmp_path / "cache").iterdir()}
    assert left == {"", "use", "draft"}
    copy = next((tmp_path / "cache").glob("*/slide/a.svs"))
    node = copy.stat().st_ino
    cache = SlideCache(tmp_path / "cache", limit_bytes=int(1.5 * MB))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [copy.parent.parent.name]
    with cache.staged(a) as found:
        assert Path(found.path).stat().st_ino == node
    with cache.staged(b):  # the dead process's use of a does not keep it
        assert copies(tmp_path / "cache") == ["bb.svs"]


def test_marks_of_another_machine_count_until_they_are_old(tmp_path):
    record, cache = slide(tmp_path / "slides", "a"), SlideCache(tmp_path / "cache")
    with cache.staged(record) as copy:
        key = Path(copy.path).parent.parent.name
    mark = tmp_path / "cache" / f"{key}.use-{'0' * 8}-1-1-0"
    assert machine_id() != "0" * 8
    mark.touch()
    cache.clear()
    assert copies(tmp_path / "cache") == ["a.svs"]
    os.utime(mark, (time.time() - 7 * 3600,) * 2)
    cache.clear()
    assert not list((tmp_path / "cache").iterdir())


def test_copies_of_before_a_power_cut_are_not_trusted(tmp_path):
    record, cache = slide(tmp_path / "slides", "a"), SlideCache(tmp_path / "cache")
    with cache.staged(record) as copy:
        path = Path(copy.path)
    said = path.parent.parent / "staged.json"
    said.write_text(json.dumps({**json.loads(said.read_text()), "boot": "another"}))
    path.write_bytes(bytes(MB))  # as one that had not reached the disk
    with cache.staged(record) as copy:
        assert Path(copy.path).read_bytes() == Path(record.path).read_bytes()


def read_often(cache: Path, records: list[SlideRecord], seed: int, told: str) -> None:
    """Stage slides in a random order, with room for two of four, and hold every copy against its slide."""
    rng, own, used = np.random.default_rng(seed), SlideCache(cache, limit_bytes=int(2.2 * MB)), 0
    for number in rng.integers(0, len(records), 60):
        record = records[number]
        with own.staged(record) as copy:
            used += copy != record
            for _ in range(2):
                assert Path(copy.path).read_bytes() == Path(record.path).read_bytes()
    Path(told).write_text(str(used))


def test_processes_that_share_a_folder_never_see_half_a_copy_nor_lose_one_in_use(tmp_path):
    records = [slide(tmp_path / "slides", name) for name in ("a", "bb", "ccc", "dddd")]
    children = [
        multiprocessing.get_context("spawn").Process(
            target=read_often, args=(tmp_path / "cache", records, seed, tmp_path / f"told{seed}")
        )
        for seed in range(3)
    ]
    for child in children:
        child.start()
    most = 0
    while any(child.is_alive() for child in children):
        names = [path.name for path in (tmp_path / "cache").glob("slidestream-????????????")]
        most = max(most, len(names))
        time.sleep(0.005)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert 0 < most <= 2
    assert all(int((tmp_path / f"told{seed}").read_text()) > 0 for seed in range(3))
    SlideCache(tmp_path / "cache").clear()
    assert not list((tmp_path / "cache").iterdir())


def wait_for(done) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_next_slides_are_copied_ahead_and_only_so_many(tmp_path):
    records = [slide(tmp_path / "slides", name) for name in ("a", "bb", "ccc", "dddd")]
    with Stager(SlideCache(tmp_path / "cache"), ahead=2) as stager:
        assert stager.ready(records[0])  # nobody wants it, so nobody is to wait
        for record in records:
            stager.want(record)
        wait_for(lambda: stager.ready(records[0]) and stager.ready(records[1]))
        assert copies(tmp_path / "cache") == ["a.svs", "bb.svs"]
        assert not stager.ready(records[2])
        stager.want(records[0])  # for another part of it
        first = stager.take(records[0])
        assert first != records[0]
        wait_for(lambda: stager.ready(records[2]))
        stager.release(records[0])
        stager.cache.clear()
        assert stager.take(records[0]) == first  # now the other part reads it
        assert Path(first.path).read_bytes() == Path(records[0].path).read_bytes()
        stager.release(records[0])
        stager.release(records[1])  # not taken: another session did it
        wait_for(lambda: stager.ready(records[3]))
    assert not list((tmp_path / "cache").iterdir())


def test_without_room_a_slide_waits_for_those_at_work_and_is_copied_then(tmp_path):
    records = [slide(tmp_path / "slides", name) for name in ("a", "bb")]
    with Stager(SlideCache(tmp_path / "cache", limit_bytes=int(1.5 * MB)), keep=True) as stager:
        stager.want(records[0])
        wait_for(lambda: stager.ready(records[0]))
        stager.take(records[0])
        stager.want(records[1])
        time.sleep(0.2)
        assert not stager.ready(records[1])
        stager.release(records[0])
        wait_for(lambda: stager.ready(records[1]))
        assert stager.take(records[1]) != records[1]
    assert copies(tmp_path / "cache") == ["bb.svs"]  # kept


def test_a_disk_that_others_have_filled_is_not_waited_for(tmp_path):
    record, other = slide(tmp_path / "slides", "a"), SlideCache(tmp_path / "cache", limit_bytes=int(1.5 * MB))
    hold = other.hold(slide(tmp_path / "slides", "bb"))
    with Stager(SlideCache(tmp_path / "cache", limit_bytes=int(1.5 * MB))) as stager:
        stager.want(record)
        wait_for(lambda: stager.ready(record))
        assert stager.take(record) == record
    assert hold is not None
    shutil.rmtree(tmp_path / "cache")
