"""What `--verify` finds in a run folder, and what becomes of it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from embedding.slide_store import write_slide_vector
from embedding.store import open_embeddings, write_embeddings
from heatmaps import Heatmap
from jobs.config import HeatmapSpec, resolve
from jobs.folder import RunFolder
from jobs.heatmap_files import Drawing, HeatmapFiles
from jobs.manifest import SlideRecord
from jobs.receipts import DONE, Receipt, append_receipt, read_receipts
from jobs.review.event import Event
from jobs.review.log import ReviewLog
from jobs.run import run_stage
from jobs.tile_stage import tile_slide
from jobs.verify import quarantine, verify_inputs, verify_run
from tiling.patches import open_patches
from wsi.publish import append_line, read_lines, write_json
from wsi.synthetic import SyntheticSpec, write_synthetic_slide

SPEC = resolve({"jobs": {"executor": "serial"}, "patches": "jpeg", "tile": {"tile_px": 64}})
CONTRACT = {"hash": "c0ffee", "dtype": "float16"}
VECTOR = {"hash": "5eed", "dim": 4, "tiles": CONTRACT}
SESSION = "20260101T120000000-0123abcd-7"


def embed(run: RunFolder, record: SlideRecord, mark: str = "embedded") -> None:
    tiles = open_patches(run.tiles(record.slide_id))
    count = len(tiles.grid)
    facts = {
        "slide_id": record.slide_id,
        "fingerprint": mark,
        "identity": tiles.identity,
        "grid_fingerprint": tiles.attrs["grid_fingerprint"],
        "contract": CONTRACT,
        "span_px": tiles.grid.span_px,
    }
    with write_embeddings(run.embeddings("net", record.slide_id), count, (4,)) as writer:
        writer.write(np.random.default_rng(0).normal(size=(count, 1, 4)).astype(np.float16), np.ones(count, bool))
        writer.finish(tiles.grid.xy, facts)


def finish(run: RunFolder, record: SlideRecord) -> None:
    """All that follows a slide's tiles, made by what makes it in a run."""
    name = record.slide_id
    embed(run, record)
    facts = {"slide_id": name, "fingerprint": "vector", "identity": "i", "embeddings": "embedded", "contract": VECTOR}
    vector = run.root / "slide_embeddings" / "encoder" / f"{name}.zarr"
    write_slide_vector(vector, np.ones(4, np.float32), {**facts, "notes": []}, 9, 0)
    said = {"slide_id": name, "status": "done", "contract": "c0ffee", "embeddings": "embedded", "fingerprint": "said"}
    write_json(run.root / "predictions" / "model" / f"{name}.json", said, sealed=True)
    tiles = open_patches(run.tiles(name))
    scores = np.linspace(0, 1, len(tiles.grid)).astype(np.float32)
    heatmap = Heatmap(name, "tumor probability", "tumor", scores, tiles.grid.xy, tiles.grid.span_px)
    files, asked = HeatmapFiles.of(run, "model", name), HeatmapSpec()
    drawing = Drawing(heatmap, tiles, asked, (0.0, 1.0), "")
    files.write(drawing, files.to_write(asked, "said"), {"slide_id": name, "prediction": "said"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[RunFolder, SlideRecord]:
    root = tmp_path_factory.mktemp("whole")
    write_synthetic_slide(root / "a.svs", SyntheticSpec(width_px=768, height_px=512))
    record, run = SlideRecord("a", root / "a.svs", "a", "a"), RunFolder(root / "run")
    assert [receipt.status for receipt in run_stage(tile_slide, [record], SPEC, run)] == [DONE]
    finish(run, record)
    return run, record


@pytest.fixture
def made(whole, tmp_path) -> tuple[RunFolder, SlideRecord]:
    """A run folder of one's own, and its slide."""
    run, record = whole
    shutil.copytree(run.root, tmp_path / "run")
    shutil.copy(record.path, tmp_path / "a.svs")
    return RunFolder(tmp_path / "run"), SlideRecord("a", tmp_path / "a.svs", "a", "a")


def results(run: RunFolder) -> list[Path]:
    folders = ("tiles", "embeddings", "slide_embeddings", "predictions", "heatmaps")
    return sorted(path for name in folders for path in (run.root / name).rglob("*") if path.is_file())


def faults(run: RunFolder, record: SlideRecord) -> list[tuple[str, str]]:
    return [(fault.stage, fault.problem) for fault in verify_run([record], SPEC, run)]


def test_a_run_as_it_was_made_has_no_faults(made):
    run, record = made
    told = []
    absent = SlideRecord("b", Path("b.svs"), "b", "b")
    assert verify_run([record, absent], SPEC, run, lambda *counts: told.append(counts)) == []
    assert told == [(1, 2), (2, 2)]
    assert open_patches(run.tiles("a")).pixels == "jpeg"
    assert len(results(run)) > 25


def test_every_flipped_byte_lost_and_shortened_file_is_found(made):
    run, record = made
    rng = np.random.default_rng(1)
    for file in results(run):
        sound = file.read_bytes()
        stage = {"tiles": "tile", "embeddings": "embed", "slide_embeddings": "encode", "predictions": "predict"}.get(
            file.relative_to(run.root).parts[0], "heatmap"
        )
        for place in {0, len(sound) - 1, *rng.integers(0, len(sound), 3).tolist()}:
            flipped = bytes([sound[place] ^ (1 << int(rng.integers(8)))])
            file.write_bytes(sound[:place] + flipped + sound[place + 1 :])
            assert stage in dict(faults(run, record)), (file, place)
        for content in (sound[: len(sound) // 2], b""):
            file.write_bytes(content)
            assert stage in dict(faults(run, record)), file
        file.unlink()
        # a prediction or a whole store that is not there is to be made; a heatmap's sidecar alone says that it is there
        gone = stage == "predict" or (stage == "heatmap" and file.suffix == ".json")
        assert (stage in dict(faults(run, record))) != gone, file
        file.write_bytes(sound)
    assert faults(run, record) == []


def test_every_byte_of_a_file_of_patches_and_of_a_heatmap_counts(made):
    run, record = made
    shard = run.tiles("a") / "patches" / "c" / "0" / "0" / "0" / "0"
    for file in (shard, run.heatmap("model", "a"), run.overlay("model", "a"), run.scores("model", "a")):
        sound = bytearray(file.read_bytes())
        places = [*range(0, 20), *range(len(sound) - 20, len(sound)), *range(20, len(sound), len(sound) // 20)]
        for place in places:
            sound[place] ^= 1 << place % 8
            file.write_bytes(sound)
            assert faults(run, record), (file, place)
            sound[place] ^= 1 << place % 8
        file.write_bytes(sound + b"\0")
        assert faults(run, record), file
        file.write_bytes(sound)
    assert faults(run, record) == []


def test_results_that_do_not_belong_together_are_found(made):
    run, record = made
    embed(run, record, "embedded anew")
    assert [stage for stage, _ in faults(run, record)] == ["encode", "predict"]
    assert {problem for _, problem in faults(run, record)} == {"its slide has been embedded anew since"}
    embed(run, record)
    for store in run.root.rglob("a.zarr"):
        shutil.copytree(store, store.with_name("b.zarr"))
    other = SlideRecord("b", record.path, "b", "b")
    assert faults(run, other) == [(stage, "it is of another slide, a") for stage in ("tile", "embed", "encode")]
    path = run.root / "predictions" / "model" / "a.json"
    said = json.loads(path.read_text())
    write_json(path, {**said, "fingerprint": "another"}, sealed=True)
    assert faults(run, record) == [("heatmap", "its slide has been predicted anew since")]
    write_json(path, {**said, "slide_id": "b"}, sealed=True)
    assert faults(run, record) == [("predict", "it says not whose it is, or from what it was made")]
    write_json(path, said, sealed=True)
    run_stage(tile_slide, [record], resolve({"jobs": {"executor": "serial"}, "tile": {"tile_px": 128}}), run)
    assert faults(run, record) == [("embed", "its tiles have been made anew since")]


def test_a_slide_without_tissue_needs_no_heatmap_files(made):
    run, record = made
    run.heatmap("model", "a").unlink()
    run.overlay("model", "a").unlink()
    sidecar = run.overlay("model", "a").with_suffix(".json")
    write_json(sidecar, {"slide_id": "a", "prediction": "said", "objects": 0, "fingerprint": "drawn"}, sealed=True)
    assert faults(run, record) == []


def test_what_is_faulty_is_put_aside_and_made_anew_and_nothing_is_deleted(made):
    run, record = made
    before = {path: path.read_bytes() for path in results(run)}
    chunk = run.tiles("a") / "xy" / "c" / "0" / "0"
    damaged = chunk.read_bytes()[:-1] + b"?"
    chunk.write_bytes(damaged)
    run.overlay("model", "a").write_bytes(b"")
    found = verify_run([record], SPEC, run)
    assert [fault.stage for fault in found] == ["tile", "heatmap"]
    assert str(found[0]) == f"{run.tiles('a')}: its array xy is not what was published: its checksum does not fit"
    places = [quarantine(fault, run, "20260101T120000") for fault in found]
    kept = run.root / "quarantine" / "20260101T120000"
    assert places == [kept / "tiles" / "a.zarr", kept / "heatmaps" / "model" / "a.scores.npz"]
    assert (kept / "tiles" / "a.zarr" / "xy" / "c" / "0" / "0").read_bytes() == damaged
    assert {path.name for path in (kept / "heatmaps" / "model").iterdir()} == {
        "a.scores.npz",
        "a.geojson.gz",
        "a.png",
        "a.json",
    }
    assert not list((run.root / "heatmaps" / "model").iterdir())
    assert not run.tiles("a").exists()
    assert [quarantine(fault, run, "20260101T120000") for fault in found] == [None, None]  # they are there already
    assert [receipt.status for receipt in run_stage(tile_slide, [record], SPEC, run)] == [DONE]
    finish(run, record)
    assert faults(run, record) == []
    assert {path: path.read_bytes() for path in results(run)} == before


def test_a_disk_that_does_not_give_what_is_on_it_is_a_fault_of_that_result_only(made):
    run, record = made
    picture = run.overlay("model", "a")
    picture.unlink()
    picture.symlink_to(picture.name)  # a loop: neither to be read nor to be looked at
    assert [stage for stage, _ in faults(run, record)] == ["heatmap"]
    chunk = run.tiles("a") / "xy" / "c" / "0" / "0"
    chunk.unlink()
    chunk.symlink_to(chunk.name)
    assert ("tile", f"it cannot be read ({os.strerror(40)})") in faults(run, record)


def test_changed_lines_of_receipts_are_named_and_taken_out_where_nobody_writes(made):
    run, record = made
    path = run.root / "receipts" / f"embed.{SESSION}.jsonl"
    for name in ("a", "b", "c"):
        append_line(path, {"slide_id": name, "stage": "embed", "status": DONE}, checked=True)
    append_receipt(run.receipts("embed"), Receipt("mine", "embed", DONE))
    append_line(run.receipts("embed"), {"slide_id": "old", "stage": "embed", "status": DONE})  # without a checksum
    assert faults(run, record) == []
    path.write_bytes(path.read_bytes().replace(b'"b"', b'"x"')[:-9])
    (fault,) = verify_run([record], SPEC, run)
    assert (fault.path, fault.lines, fault.problem) == (path, (2, 3), "lines 2, 3 are damaged or cut short")
    assert quarantine(fault, run, "now", lives=lambda session: session == SESSION) is None
    assert quarantine(fault, run, "now", lives=lambda session: session != SESSION) is not None
    assert faults(run, record) == []
    assert [line["slide_id"] for line in read_lines(path)] == ["a"]
    kept = (run.root / "quarantine" / "now" / "receipts" / path.name).read_text()
    assert '"x"' in kept
    assert '"c"' in kept
    append_line(path, {"slide_id": "d", "stage": "embed", "status": DONE}, checked=True)
    assert {receipt.slide_id for receipt in read_receipts(run.receipts("embed"))} == {"a", "d", "mine", "old"}


def test_changed_lines_of_a_review_are_named_and_stay_where_they_are(made):
    run, record = made
    log = ReviewLog(run.review / "log")
    for event in ("one", "two"):
        log.append(Event(event, "", "Ada", record.slide_id, "comment", text=event))
    assert faults(run, record) == []
    (path,) = (run.review / "log").iterdir()
    path.write_bytes(path.read_bytes().replace(b"Ada", b"Eve", 1))
    (fault,) = verify_run([record], SPEC, run)
    assert (fault.path, fault.lines, fault.problem) == (path, (1,), "line 1 is damaged or cut short")
    assert quarantine(fault, run, "now", lives=lambda session: False) is None
    assert len(path.read_bytes().splitlines()) == 2


def test_a_slide_that_was_changed_since_takes_all_its_results_with_it(made):
    run, record = made
    missing = SlideRecord("b", record.path.with_name("b.svs"), "b", "b")
    for _ in range(2):
        assert verify_inputs([record, missing], SPEC, run) == []
    (line,) = read_lines(run.root / "inputs.json")
    assert (line["slide_id"], line["size"], len(line["sha256"])) == ("a", record.path.stat().st_size, 64)
    content = bytearray(record.path.read_bytes())
    content[len(content) // 3] ^= 1
    record.path.write_bytes(content)
    for _ in range(2):  # it is a fault until its results are put aside
        (fault,) = verify_inputs([record], SPEC, run)
        assert (fault.path, fault.stage) == (record.path, "inputs")
        moved = [path.relative_to(run.root).parts[0] for path in fault.with_it]
        assert moved == ["tiles", "embeddings", "slide_embeddings", "predictions", *["heatmaps"] * 4]
    assert fault.problem.startswith("the slide was changed since 20")
    assert quarantine(fault, run, "now") == run.root / "quarantine" / "now" / "tiles" / "a.zarr"
    assert record.path.exists()
    assert results(run) == []
    assert verify_inputs([record], SPEC, run) == []
    assert len(read_lines(run.root / "inputs.json")) == 2
    assert run_stage(tile_slide, [record], SPEC, run)[0].status == DONE
    embed(run, record)
    assert len(open_embeddings(run.embeddings("net", "a")).embeddings) == len(open_patches(run.tiles("a")).grid)
