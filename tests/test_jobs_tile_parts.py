"""Pixels written in parts: whoever writes them, whatever befalls them, the store is what one process writes whole."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from jobs import tile_stage
from jobs.config import RunSpec, resolve
from jobs.folder import RunFolder
from jobs.manifest import SlideRecord
from jobs.outcome import Split
from jobs.receipts import Receipt, read_receipts
from jobs.run import Watcher, run_stage
from jobs.tile_stage import join_tiles, tile_part, tile_slide
from tests.slides import SvsOptions, tissue_like, write_svs
from tiling import PatchRequest, TileSpec, TissueSpec, find_tissue, open_patches, plan_grid
from tiling.parts import open_plan, write_plan
from wsi import open_slide
from wsi.errors import StoreError

SIDE, TILES = 1024, 36  # of this size 16 tiles are a shard
WHOLE = 1000  # more than the slide has: it is not cut
SCRIPT = """
import os, resource, signal, sys
from pathlib import Path

import jobs.tile_stage, tiling.parts, tiling.pixels, tiling.store
from jobs.config import resolve
from jobs.folder import RunFolder
from jobs.manifest import SlideRecord
from jobs.run import run_stage

slide, run, size, patches, fault = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]

def die(*arguments, **settings):
    os.kill(os.getpid(), signal.SIGKILL)

def write_and_die(*arguments):
    write_shard(*arguments)
    die()

write_shard = tiling.pixels.write_shard
if fault == "plan":  # all of it is written, it has not its name yet
    tiling.parts.flush_tree = die
if fault == "shard":  # one of the two of a part is there
    tiling.pixels.write_shard = write_and_die
if fault == "said":  # all pixels of a part are there, nobody said so
    jobs.tile_stage.write_ok = die
if fault == "join":
    tiling.store.StoreWriter.finish = die
if fault == "joined":  # the store is there, its parts are, too
    jobs.tile_stage.rmtree = die
if fault == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
settings = {"tile": {"tile_px": 1024, "tissue": {"method": "none"}}, "patches": patches}
settings["jobs"] = {"executor": "serial", "shard_tiles": size}
records = [SlideRecord("s", slide, "s", "s")]
for receipt in run_stage(jobs.tile_stage.tile_slide, records, resolve(settings), RunFolder(run)):
    print(receipt.status, receipt.problem)
"""


def spec_of(patches: str = "native", size: int = 16, executor: str = "serial", **tile: Any) -> RunSpec:
    tile = {"tile_px": SIDE, "tissue": {"method": "none"}, **tile}
    jobs = {"executor": executor, "shard_tiles": size, "workers": 2}
    return resolve({"tile": tile, "patches": patches, "jobs": jobs})


def record_of(slide: Path) -> SlideRecord:
    return SlideRecord("s", slide, "s", "s")


def tile(slide: Path, run: Path, spec: RunSpec, watcher: Watcher | None = None) -> Receipt:
    RunFolder(run).prepare()
    (receipt,) = run_stage(tile_slide, [record_of(slide)], spec, RunFolder(run), watcher)
    return receipt


def content(run: Path) -> dict[str, bytes]:
    """Every file in tiles/, of drafts and of parts, too."""
    folder = run / "tiles"
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def parts_done(run: Path) -> list[int]:
    """Numbers of the parts that were written, in order; a part that was found to be joined already counts no tiles."""
    known = read_receipts(run / "receipts" / "tile.jsonl", parts=True)
    return [one.part for one in known if one.part is not None and one.tiles]


def split(slide: Path, run: Path, spec: RunSpec) -> Split:
    found = tile_slide(record_of(slide), spec, RunFolder(run))
    assert isinstance(found, Split)
    return found


def start(slide: Path, run: Path, size: int, patches: str, fault: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(slide), str(run), str(size), patches, fault]
    root = str(Path(__file__).resolve().parent.parent)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    """Of 36 JPEG tiles, which differ."""
    image = np.tile(tissue_like(1536, 1536), (4, 4, 1))
    return write_svs(tmp_path_factory.mktemp("slide") / "s.svs", image, SvsOptions(tile=SIDE, downsamples=(1, 4)))


@pytest.fixture(scope="module")
def whole(slide, tmp_path_factory):
    """By how pixels are kept: the files that one process writes of the uncut slide."""
    known: dict[str, dict[str, bytes]] = {}

    def get(patches: str) -> dict[str, bytes]:
        if patches not in known:
            run = tmp_path_factory.mktemp(patches)
            assert tile(slide, run, spec_of(patches, WHOLE)).status == "done"
            assert parts_done(run) == []
            known[patches] = content(run)
        return known[patches]

    return get


@pytest.mark.parametrize(
    ("patches", "size", "executor", "parts"),
    [
        ("raw", 16, "serial", 3),
        ("jpeg", 32, "serial", 2),
        ("native", 1, "serial", 3),  # a part is a whole shard at least
        ("jpeg", 16, "processes", 3),
        ("native", 32, "processes", 2),
    ],
)
def test_parts_of_any_size_written_by_any_process_make_the_same_bytes(
    slide, tmp_path, whole, patches, size, executor, parts
):
    receipt = tile(slide, tmp_path, spec_of(patches, size, executor))
    assert (receipt.status, receipt.tiles, receipt.problem) == ("done", TILES, "")
    assert sorted(parts_done(tmp_path)) == list(range(parts))
    assert content(tmp_path) == whole(patches)
    assert (tmp_path / "tissue" / "s.jpg").is_file()
    again = tile(slide, tmp_path, spec_of(patches, size, executor))
    assert (again.status, again.tiles) == ("skipped", TILES)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("fault", "size", "done", "redone"),
    [
        ("plan", 16, [], [0, 1, 2]),
        ("shard", 32, [], [0, 1]),
        ("said", 32, [], [0, 1]),
        ("join", 16, [0, 1, 2], []),
        ("joined", 16, [0, 1, 2], []),
    ],
)
def test_a_run_killed_at_any_step_goes_on_to_the_same_bytes(slide, tmp_path, whole, fault, size, done, redone):
    killed = start(slide, tmp_path, size, "native", fault)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert parts_done(tmp_path) == done
    assert (tmp_path / "tiles" / "s.zarr").exists() == (fault == "joined")
    plans = list((tmp_path / "tiles").glob(".parts/[!.]*"))
    assert len(plans) == (fault != "plan")  # there is a whole plan or none
    receipt = tile(slide, tmp_path, spec_of("native", size))
    assert (receipt.status, receipt.tiles) == ("skipped" if fault == "joined" else "done", TILES)
    assert parts_done(tmp_path) == done + redone
    assert content(tmp_path) == whole("native")
    assert (tmp_path / "tissue" / "s.jpg").is_file()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_worker_that_is_killed_in_a_part_costs_that_part_only(slide, tmp_path, whole):
    over, killed = threading.Event(), []

    def kill() -> None:
        """As soon as a part is being written."""
        while not (killed or over.wait(0.001)):
            if list((tmp_path / "tiles").glob(".parts/*/patches/**/.draft-*")):
                killed.append(active_children()[0].pid)
                os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        receipt = tile(slide, tmp_path, spec_of("raw", 16, "processes"))
    finally:
        over.set()
        killer.join()
    assert killed
    assert (receipt.status, receipt.problem) == ("done", "")
    assert sorted(parts_done(tmp_path)) == [0, 1, 2]
    assert content(tmp_path) == whole("raw")


def test_twin_runs_share_the_parts_and_do_none_twice(slide, tmp_path, whole):
    twins = [start(slide, tmp_path, 16, "native", "none") for _ in range(2)]
    said = sorted(twin.communicate()[0].split()[0] for twin in twins)
    assert said == ["done", "skipped"]
    assert sorted(parts_done(tmp_path)) == [0, 1, 2]
    assert content(tmp_path) == whole("native")


@pytest.mark.skipif(os.name != "posix", reason="limits of file sizes")
def test_a_full_disk_is_named_and_what_is_done_stays_done(slide, tmp_path, whole):
    found = split(slide, tmp_path, spec_of())
    tile_part(record_of(slide), spec_of(), RunFolder(tmp_path), 1)
    before = [file.stat() for file in (found.folder, found.folder / Split.name_of(1))]
    full = start(slide, tmp_path, 16, "native", "full")
    (said,) = full.communicate()[0].splitlines()
    assert "failed nothing more can be written: File too large" in said
    assert not (tmp_path / "tiles" / "s.zarr").exists()
    assert not list(found.folder.rglob(".draft-*"))
    after = [file.stat() for file in (found.folder, found.folder / Split.name_of(1))]
    assert [(one.st_ino, one.st_size) for one in after] == [(one.st_ino, one.st_size) for one in before]
    assert tile(slide, tmp_path, spec_of("native", WHOLE)).status == "done"  # the size is the plan's
    assert parts_done(tmp_path) == [0, 2]
    assert content(tmp_path) == whole("native")


def test_a_plan_that_is_there_is_used_and_a_damaged_one_is_made_anew(slide, tmp_path, whole):
    spec, folder = spec_of(), RunFolder(tmp_path)
    found = split(slide, tmp_path, spec)
    tile_part(record_of(slide), spec, folder, 2)
    folder.clear()
    inode = found.folder.stat().st_ino
    again = split(slide, tmp_path, spec_of(size=32))
    assert (again.folder.stat().st_ino, again.parts, again.has(2)) == (inode, 3, True)
    plan = found.folder / "plan.json"
    plan.write_bytes(plan.read_bytes().replace(b'"s"', b'"t"', 1))
    assert open_plan(found.folder) is None
    with pytest.raises(StoreError, match="the plan of its parts is gone"):
        tile_part(record_of(slide), spec, folder, 0)
    anew = split(slide, tmp_path, spec)
    assert not anew.has(2)
    assert tile(slide, tmp_path, spec).status == "done"
    assert content(tmp_path) == whole("native")


def test_a_planner_that_comes_late_leaves_the_plan_that_has_parts(slide, tmp_path):
    request = PatchRequest("s", "mark", pixels="native", part_tiles=16)
    with open_slide(slide) as opened:
        tissue = find_tissue(opened, TissueSpec("none"))
        grid = plan_grid(opened.levels, TileSpec(tile_px=SIDE, mpp=0.5, tissue=TissueSpec("none")), tissue)
        write_plan(tmp_path / "plan", opened, grid, tissue, request)
        ok = open_plan(tmp_path / "plan").write_part(opened, 2, request)
        assert ok.tolist() == [True] * 4
        write_plan(tmp_path / "plan", opened, grid, tissue, replace(request, part_tiles=32))
    plan = open_plan(tmp_path / "plan")
    assert plan.part_tiles == 16
    plan.check_part(2)
    with pytest.raises(StoreError, match="its file patches/c/0/0/0/0 is gone"):
        plan.check_part(0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan"]


def test_plans_of_other_settings_are_removed(slide, tmp_path):
    other, same_end = (
        split(slide, tmp_path, spec_of("jpeg")),
        tmp_path / "tiles" / ".parts" / "0123456789ab-plan-other-s",
    )
    same_end.mkdir()
    found = split(slide, tmp_path, spec_of("native"))
    assert (other.folder.exists(), found.folder.exists(), same_end.exists()) == (False, True, True)


def test_what_comes_late_changes_nothing(slide, tmp_path, whole):
    spec, folder = spec_of(), RunFolder(tmp_path)
    found = split(slide, tmp_path, spec)
    late = open_plan(found.folder)
    assert len(late.grid) == TILES
    for number in range(found.parts):
        assert tile_part(record_of(slide), spec, folder, number)[1] == 0
    assert tile_part(record_of(slide), spec, folder, 1) == (16, 0)  # a second time
    assert join_tiles(record_of(slide), spec, folder).status == "done"
    with open_slide(slide) as opened, pytest.raises(FileNotFoundError):
        late.write_part(opened, 1, PatchRequest("s", "mark", pixels="native"))
    assert found.folder.exists()
    assert len(open_patches(folder.tiles("s")).grid) == TILES
    assert join_tiles(record_of(slide), spec, folder).status == "skipped"
    assert tile_part(record_of(slide), spec, folder, 1) == (0, 0)
    assert content(tmp_path) == whole("native")


@pytest.mark.parametrize(("step", "counted"), [("open_plan", 0), ("write_ok", 16)])
def test_a_part_that_others_join_while_it_is_written_leaves_nothing(slide, tmp_path, whole, monkeypatch, step, counted):
    spec, folder = spec_of(), RunFolder(tmp_path)
    found, took = split(slide, tmp_path, spec), getattr(tile_stage, step)

    def meanwhile(*arguments):
        monkeypatch.setattr(tile_stage, step, took)
        known = [took(*arguments)] if step == "open_plan" else []
        for number in range(found.parts):
            tile_part(record_of(slide), spec, folder, number)
        join_tiles(record_of(slide), spec, folder)
        return known[0] if known else took(*arguments)

    monkeypatch.setattr(tile_stage, step, meanwhile)
    assert tile_part(record_of(slide), spec, folder, 1) == (counted, 0)
    assert content(tmp_path) == whole("native")


def test_a_part_whose_pixels_are_gone_is_made_again(slide, tmp_path, whole):
    spec, folder = spec_of(), RunFolder(tmp_path)
    found = split(slide, tmp_path, spec)
    for number in range(found.parts):
        tile_part(record_of(slide), spec, folder, number)
    file = found.folder / "patches" / "c" / "1" / "0" / "0" / "0"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    receipt = tile(slide, tmp_path, spec)
    assert receipt.status == "failed"
    assert "this part of a slide is damaged (its file patches/c/1/0/0/0 is damaged" in receipt.problem
    assert tile(slide, tmp_path, spec).status == "done"
    assert parts_done(tmp_path) == [1]
    assert content(tmp_path) == whole("native")


def test_a_slide_that_changes_while_it_is_read_fails(slide, tmp_path):
    changing, folder = Path(shutil.copy(slide, tmp_path / "s.svs")), RunFolder(tmp_path / "run")
    found = split(changing, folder.root, spec_of())
    with changing.open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(StoreError, match="or the slide is another by now"):
        tile_part(record_of(changing), spec_of(), folder, 0)
    assert not found.has(0)


@pytest.mark.parametrize("patches", ["raw", "native"])
def test_unreadable_tiles_count_for_the_slide_under_the_limit_of_the_day(slide, tmp_path, patches):
    damaged = Path(shutil.copy(slide, tmp_path / "s.svs"))
    with tifffile.TiffFile(damaged) as file, damaged.open("r+b") as stream:
        for number in (3, 20):
            stream.seek(file.pages[0].dataoffsets[number] + file.pages[0].databytecounts[number] // 2)
            stream.write(bytes(file.pages[0].databytecounts[number] // 4))
    strict, lenient = spec_of(patches, max_failed_tiles=0.01), spec_of(patches, max_failed_tiles=0.1)
    run, other = tmp_path / "run", tmp_path / "other"
    refused = tile(damaged, run, strict)
    assert refused.status == "failed"
    assert "damaged: 2 of 36 tiles (6%) cannot be read, limit 1%" in refused.problem
    assert content(run) == {}  # its parts are read again: the fault may have been the disk's
    split(damaged, run, strict)
    done = tile(damaged, run, lenient)
    assert (done.status, done.failed_tiles) == ("done", 2)
    jobs = replace(lenient.jobs, shard_tiles=WHOLE)
    assert tile(damaged, other, replace(lenient, jobs=jobs)).failed_tiles == 2
    assert content(run) == content(other)
    assert np.flatnonzero(~open_patches(run / "tiles" / "s.zarr").array("ok")).tolist() == [3, 20]
