"""What a run will read, write and take is said before it begins, by what was measured, or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from pydicom.encaps import generate_frames

from embedding import build, find_backbone, find_weights
from embedding.extractor import Extractor, Plan
from embedding.speed import measure_speed
from jobs import throughput
from jobs.config import resolve
from jobs.folder import RunFolder
from jobs.manifest import SlideRecord, read_source
from jobs.pipeline import Job
from jobs.plan import plan_run, read_bytes, ready_for, size_words, time_words, vector_bytes
from jobs.receipts import Receipt, append_receipt
from jobs.stages import embed_slide
from jobs.throughput import estimate, measured, memory_file, rate_of
from jobs.tile_stage import tile_slide
from tests.commands import section, slides
from tests.dicom_slides import write_dicom
from tiling import TileSpec, TissueSpec, find_tissue, plan_grid
from wsi import open_slide

SMALL = {"jobs": {"executor": "serial"}, "tile": {"tile_px": 120, "mpp": 0.5}}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLIDESTREAM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def planned(source: Path, run: Path, **settings):
    spec = resolve({**SMALL, **settings})
    return plan_run(read_source(source), spec, RunFolder(run), lambda done: None, embeds=True), spec


@pytest.mark.parametrize("tile_px", [120, 240, 100])
def test_bytes_to_read_are_those_of_the_stored_tiles_under_the_grid(tile_px, tmp_path):
    path = slides(tmp_path / "slides", "a") / "a.svs"
    spec = TileSpec(tile_px=tile_px, mpp=0.5, tissue=TissueSpec(method="otsu"))
    with open_slide(path) as slide, tifffile.TiffFile(path) as file:
        grid = plan_grid(slide.levels, spec, find_tissue(slide, spec.tissue))
        page, under = file.pages[0], set()
        for x, y in grid.xy.tolist():
            rows, columns = (range(at // 240, -(-(at + tile_px) // 240)) for at in (y, x))
            under |= {row * -(-page.imagewidth // 240) + column for row in rows for column in columns}
        assert 0 < len(under) < len(page.databytecounts)
        assert read_bytes(slide, grid, path.stat().st_size) == sum(page.databytecounts[tile] for tile in under)


def test_bytes_to_read_of_a_dicom_slide_are_its_frames(tmp_path):
    path = write_dicom(tmp_path / "s.dcm", section(512, 512, (0, 0, 512, 512)))
    pixels = pydicom.dcmread(path).PixelData
    frames = np.reshape([len(frame) for frame in generate_frames(pixels, number_of_frames=16)], (4, 4))
    spec = TileSpec(tile_px=128, mpp=0.5, tissue=TissueSpec(method="none"))
    with open_slide(path) as slide:
        grid = plan_grid(slide.levels, spec, find_tissue(slide, spec.tissue))
        assert read_bytes(slide, grid, path.stat().st_size) == frames.sum()
        left = replace(grid, xy=grid.xy[grid.xy[:, 0] < 256], tissue=grid.tissue[grid.xy[:, 0] < 256])
        assert read_bytes(slide, left, path.stat().st_size) == frames[:, :2].sum()


class Opaque:
    """A slide whose reader does not know its stored tiles."""

    def __init__(self, slide):
        self.levels = slide.levels


def test_where_the_reader_does_not_know_the_share_of_the_area_counts(tmp_path):
    path = slides(tmp_path / "slides", "a") / "a.svs"
    spec = TileSpec(tile_px=120, mpp=0.5, tissue=TissueSpec(method="none"))
    with open_slide(path) as slide:
        grid = plan_grid(slide.levels, spec, find_tissue(slide, spec.tissue))
        half = replace(grid, xy=grid.xy[: len(grid) // 2], tissue=grid.tissue[: len(grid) // 2])
        all_of_it = read_bytes(Opaque(slide), grid, 1_000_000)
        assert all_of_it == pytest.approx(1_000_000 / (1 + 1 / 4 + 1 / 16), rel=0.01)
        assert read_bytes(Opaque(slide), half, 1_000_000) == pytest.approx(all_of_it / 2, rel=0.02)


def test_a_plan_measures_the_model_once_and_then_remembers(tmp_path, home):
    source = slides(tmp_path / "slides", "a", "b")
    plan, spec = planned(source, tmp_path / "run")
    assert (plan.slides, plan.tiles, plan.left, plan.embedded) == (2, plan.left, plan.left, [])
    assert plan.bytes == plan.tiles * (60 + vector_bytes(spec))
    assert 0 < plan.read < plan.whole == sum(file.stat().st_size for file in source.iterdir())
    assert plan.embedding.device_s > 0
    assert "measured now on" in "\n".join(plan.words(spec))
    assert not (tmp_path / "run").exists()
    again, _ = planned(source, tmp_path / "run")
    assert "measured here on" in again.embedding.source
    assert "of noise" in again.embedding.source
    assert again.embedding.device_s == pytest.approx(plan.embedding.device_s, rel=1e-3)
    (home / "throughput.json").write_text("{")
    assert throughput._remembered("anything") is None
    copied, spec = planned(source, tmp_path / "run", jobs={"executor": "serial", "stage_to": str(tmp_path / "ssd")})
    assert copied.read == copied.whole
    assert not (tmp_path / "ssd").exists()


def test_without_the_weights_there_is_no_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    plan, spec = planned(slides(tmp_path / "slides", "a"), tmp_path / "run", embed={"backbone": "uni"})
    assert plan.embedding.device_s is None
    text = "\n".join(plan.words(spec))
    assert "no figure of the time" in text
    assert "uni was not measured here yet" in text
    assert "tiles/s" not in text


def test_what_is_embedded_already_is_not_counted_again(tmp_path):
    source, folder = slides(tmp_path / "slides", "a", "b"), RunFolder(tmp_path / "run")
    records, spec = read_source(source), resolve(SMALL)
    first, _ = planned(source, folder.root)
    for record in records:
        tile_slide(record, spec, folder)
        append_receipt(folder.receipts("tile"), Receipt(record.slide_id, "tile", "done", 2.0, tiles=20))
    embed_slide(records[0], spec, folder)
    half, _ = planned(source, folder.root)
    assert (half.there, half.embedded, half.left) == (2, ["a"], first.left // 2)
    assert half.bytes == half.left * vector_bytes(spec)
    assert half.whole == Path(records[1].path).stat().st_size
    assert "1 of 2 slides are embedded already" in half.words(spec)[-1]
    ready = ready_for(Job(records, spec, folder), embed_slide)
    assert (ready.tiles, ready.left, ready.embedded) == (half.tiles, half.left, ["a"])
    embed_slide(records[1], spec, folder)
    done, _ = planned(source, folder.root)
    assert (done.left, done.bytes, done.read) == (0, 0, 0)
    assert done.words(spec)[-1].endswith("2 of 2 slides are embedded already: nothing is left")
    (source / "c.svs").write_bytes((source / "a.svs").read_bytes())
    more, _ = planned(source, folder.root)
    assert more.tiling_s == 2.0
    assert "about 2 s, by the 2 slides of this run folder" in "\n".join(more.costs())


def test_what_a_run_measures_is_kept_for_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "LEAST_S", 0.0)
    throughput._meters.clear()
    spec = resolve(SMALL)
    with measured(spec.embed, 120) as count:
        count(500)  # of the first tiles nobody knows how long the model took: things were set up
        count(40)
        with measured(spec.embed, 120) as other:
            other(30)
    (kept,) = json.loads(memory_file().read_text())["measured"].values()
    assert (kept["tiles"], kept["noise"]) == (70, False)
    cost = estimate(spec, 700, RunFolder(tmp_path / "run"))
    assert cost.device_s == pytest.approx(10 * kept["seconds"], abs=0.01)
    assert cost.source.endswith("on 70 tiles")
    on_a_cluster = replace(spec, jobs=replace(spec.jobs, executor="dask"))
    assert estimate(on_a_cluster, 700, RunFolder(tmp_path / "run")).seconds is None


def receipt(slide: str, finished: int, seconds: float, worker: str = "h/1", part: int | None = None) -> Receipt:
    at = f"2026-01-01T00:{finished // 60:02}:{finished % 60:02}+00:00"
    return Receipt(slide, "embed", "done", seconds, tiles=500, finished=at, part=part, worker=worker)


@pytest.mark.parametrize(("receipts", "tiles", "seconds"), [
    ([receipt("a", 60, 20), receipt("b", 100, 20)], 1000, 40),  # one after the other, with a pause
    ([receipt("a", 60, 20), receipt("b", 65, 20)], 1000, 25),  # two at a time in one worker
    ([receipt("a", 60, 20), receipt("b", 65, 20, "h/2")], 1000, 40),  # in two workers
    ([receipt("a", 60, 20, part=0), receipt("a", 80, 20, "h/2", 1), receipt("a", 81, 1)], 1000, 40),  # parts and join
    ([receipt("a", 60, 20), receipt("other", 90, 20)], 500, 20),  # embedded with other settings
])  # fmt: skip
def test_the_rate_of_a_run_is_of_the_time_in_which_its_workers_had_work(receipts, tiles, seconds):
    rate = rate_of(receipts, ["a", "b"])
    assert (rate.tiles, rate.seconds) == (tiles, seconds)


def test_too_few_tiles_make_no_rate():
    assert rate_of([replace(receipt("a", 60, 20), tiles=50)], ["a"]) is None
    assert rate_of([replace(receipt("a", 60, 20), status="failed")], ["a"]) is None


def test_a_slow_model_is_measured_on_few_tiles():
    backbone = find_backbone("efficientnet-lite0")
    with Extractor(build(backbone, find_weights(backbone)), Plan(threads=1)) as extractor:
        assert measure_speed(extractor, 120, 1e-9)[0] == 1
        tiles, seconds = measure_speed(extractor, 120, 0.3)
        assert tiles >= extractor.window
        assert seconds > 0


@pytest.mark.parametrize(("seconds", "words"), [
    (0.1, "1 s"), (119, "119 s"), (120, "2 min"), (7_199, "120 min"), (11_160, "3.1 h"), (200_000, "2.3 days")
])  # fmt: skip
def test_durations_in_words(seconds, words):
    assert time_words(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(0, "0.0 MB"), (999_999, "1.0 MB"), (13_400_000_000, "13.4 GB"),
                                              (2_100_000_000_000, "2.1 TB")])  # fmt: skip
def test_sizes_in_words(count, words):
    assert size_words(count) == words


def test_several_slides_are_looked_at_at_a_time_and_a_bad_one_is_named(tmp_path):
    source = slides(tmp_path / "slides", *"abcdefg")
    (source / "d.svs").write_bytes(np.random.default_rng(0).bytes(5000))
    spec, told = resolve({"tile": SMALL["tile"], "jobs": {"workers": 2}}), []
    plan = plan_run(read_source(source), spec, RunFolder(tmp_path / "run"), told.append)
    alone = plan_run(read_source(source), resolve(SMALL), RunFolder(tmp_path / "run"), told.append)
    assert plan == alone
    assert (plan.slides, list(plan.failed), told) == (6, ["d"], [*range(1, 8)] * 2)
    assert plan.embedding is None
    missing = plan_run([SlideRecord("x", tmp_path / "x.svs", "x", "x")], spec, RunFolder(tmp_path), told.append)
    assert list(missing.failed) == ["x"]
