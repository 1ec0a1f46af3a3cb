"""The embedding stage in real processes: several slides and devices at a time, kills, full disks and twin runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedding import open_embeddings
from jobs import extraction
from jobs.config import RunSpec, resolve
from jobs.folder import RunFolder
from jobs.manifest import SlideRecord
from jobs.receipts import Receipt
from jobs.run import run_stage
from jobs.stages import embed_slide
from jobs.tile_stage import tile_slide
from tests import commands
from tests.slides import write_svs
from wsi.errors import BackboneError
from wsi.synthetic import SyntheticSpec, write_synthetic_slide

NAMES = ("a", "b", "c")
SETTINGS = {"tile": {"tissue": {"method": "none"}}}


def spec_of(executor: str = "serial", **embed: object) -> RunSpec:
    return resolve({**SETTINGS, "jobs": {"executor": executor}, "embed": embed})


def embed(cohort: Path, run: Path, spec: RunSpec) -> list[Receipt]:
    records = [SlideRecord(name, cohort / f"{name}.svs", name, name) for name in NAMES]
    RunFolder(run).prepare()
    return run_stage(embed_slide, records, spec, RunFolder(run))


def content(run: Path) -> dict[str, bytes]:
    """Every file of the run's embeddings."""
    folder = run / "embeddings"
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Three slides, tiled: `tiled` beside them."""
    folder = tmp_path_factory.mktemp("cohort")
    for seed, name in enumerate(NAMES):
        write_synthetic_slide(folder / f"{name}.svs", SyntheticSpec(seed=seed, width_px=1024, height_px=1024))
    records = [SlideRecord(name, folder / f"{name}.svs", name, name) for name in NAMES]
    assert {one.status for one in run_stage(tile_slide, records, spec_of(), RunFolder(folder / "tiled"))} == {"done"}
    return folder


@pytest.fixture
def run(cohort, tmp_path) -> Path:
    return Path(shutil.copytree(cohort / "tiled", tmp_path / "run"))


@pytest.fixture(scope="module")
def expected(cohort, tmp_path_factory) -> dict[str, bytes]:
    """What a run that nothing befalls makes of the cohort."""
    run = tmp_path_factory.mktemp("expected") / "run"
    shutil.copytree(cohort / "tiled", run)
    assert [receipt.status for receipt in embed(cohort, run, spec_of(batch=4))] == ["done"] * 3
    return content(run)


def test_two_processes_of_two_slides_each_make_what_one_makes(cohort, run, expected):
    receipts = embed(cohort, run, spec_of("processes", batch=4, device="cpu,cpu"))
    assert [(receipt.slide_id, receipt.status) for receipt in receipts] == [(name, "done") for name in NAMES]
    assert content(run) == expected


SCRIPT = """
import os, resource, signal, sys
from pathlib import Path

import wsi
from embedding.store import EmbeddingWriter
from jobs.config import resolve
from jobs.folder import RunFolder
from jobs.manifest import SlideRecord
from jobs.run import run_stage
from jobs.stages import embed_slide

cohort, run, fault = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
written = EmbeddingWriter.write

def killing(writer, vectors, ok):
    written(writer, vectors, ok)
    if any(run.glob("embeddings/*/a.zarr")):
        os.kill(os.getpid(), signal.SIGKILL)

if fault == "kill":
    EmbeddingWriter.write = killing
if fault == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
settings = {"tile": {"tissue": {"method": "none"}}, "jobs": {"executor": "serial"}, "embed": {"batch": 4}}
records = [SlideRecord(name, cohort / f"{name}.svs", name, name) for name in "abc"]
for receipt in run_stage(embed_slide, records, resolve(settings), RunFolder(run)):
    print(receipt.status, receipt.problem)
"""


def start(cohort: Path, run: Path, fault: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(cohort), str(run), fault]
    root = str(Path(__file__).resolve().parent.parent)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_run_killed_while_it_writes_goes_on_to_the_same_bytes(cohort, run, expected):
    killed = start(cohort, run, "kill")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in run.glob("embeddings/*/[!.]*.zarr")] == ["a.zarr"]
    assert list(run.glob("embeddings/*/.draft-*b.zarr/embeddings/c"))  # it had begun
    assert [receipt.status for receipt in embed(cohort, run, spec_of(batch=4))] == ["skipped", "done", "done"]
    assert content(run) == expected


@pytest.mark.skipif(os.name != "posix", reason="limits of file sizes")
def test_a_full_disk_ends_the_run_says_so_and_leaves_nothing_half(cohort, run):
    full = start(cohort, run, "full")
    lines = (full.communicate()[0]).splitlines()
    assert {line.split()[0] for line in lines} == {"failed"}  # what was not tried is not called failed
    assert 1 <= len(lines) <= 2
    assert all("nothing more can be written: File too large" in line for line in lines)
    assert not [path for path in (run / "embeddings").rglob("*") if path.is_file()]


def test_twin_runs_on_one_folder_both_end_well_with_one_result(cohort, run, expected):
    twins = [start(cohort, run, "none") for _ in range(2)]
    said = [twin.communicate()[0].split() for twin in twins]
    assert {word for words in said for word in words} <= {"done", "skipped"}
    assert [len(words) for words in said] == [3, 3]
    assert content(run) == expected


def test_stored_pixels_are_embedded_without_opening_the_slide(cohort, tmp_path, monkeypatch, expected):
    records = [SlideRecord(name, cohort / f"{name}.svs", name, name) for name in NAMES]
    folder = RunFolder(tmp_path / "run")
    spec = replace(spec_of(batch=4), patches="raw")
    run_stage(tile_slide, records, spec, folder)
    monkeypatch.setattr(extraction, "open_record", None)
    assert [receipt.status for receipt in run_stage(embed_slide, records, spec, folder)] == ["done"] * 3
    assert content(tmp_path / "run") == expected


def test_a_slide_changed_after_tiling_is_not_embedded(cohort, run, tmp_path):
    changed = shutil.copytree(cohort, tmp_path / "changed", ignore=shutil.ignore_patterns("tiled"))
    shutil.copy(cohort / "a.svs", changed / "b.svs")
    receipts = embed(changed, run, spec_of(batch=4))
    assert [receipt.status for receipt in receipts] == ["done", "failed", "done"]
    assert receipts[1].problem == "it is not the slide that was tiled: its content differs"
    shutil.copy(cohort / "b.svs", changed / "b.svs")
    assert [receipt.status for receipt in embed(changed, run, spec_of(batch=4))] == ["skipped", "done", "skipped"]


def test_weights_replaced_between_their_digest_and_their_loading_are_refused(run):
    with pytest.raises(BackboneError, match="it was replaced while the run was at work"):
        extraction.load_extractor(spec_of().embed, RunFolder(run), "0" * 64)


def test_dtype_views_and_stain_reach_the_store_and_its_contract(cohort, run):
    spec = spec_of(batch=4, dtype="float32", views=2, stain={"method": "reinhard", "jitter": 0.0})
    (receipt, *_) = embed(cohort, run, spec)
    assert receipt.status == "done", receipt.problem
    store = open_embeddings(next(run.glob("embeddings/*/a.zarr")))
    assert (store.embeddings.dtype, store.views.shape[1:]) == (np.float32, (1, store.embeddings.shape[1]))
    assert not np.array_equal(store.embeddings, store.views[:, 0])
    assert (store.contract["dtype"], store.contract["views"], store.contract["stain"]["method"]) == (
        "float32", 2, "reinhard",
    )  # fmt: skip
    assert store.contract["precision"] == "fp32"


def test_the_record_of_the_run_counts_tiles_for_the_choice_of_compiling(run):
    counts = [json.loads(path.read_text())["attributes"]["complete"]["tiles"] for path in run.glob("tiles/*/zarr.json")]
    assert extraction.count_tiles(RunFolder(run)) == sum(counts) > 0


def test_stains_are_fitted_on_tiles_and_a_slide_without_any_keeps_its_colours(tmp_path):
    grey = np.full((960, 1200, 3), 243, np.uint8)
    grey[240:720, 240:960] = np.random.default_rng(0).integers(90, 150, (480, 720, 1))
    folder, run = commands.slides(tmp_path / "slides", "pink"), tmp_path / "run"
    write_svs(folder / "grey.svs", grey)
    commands.wsi("tile", folder, "-o", run, "--tissue", "none")
    commands.wsi("embed", folder, "-o", run)
    (plain,) = (run / "embeddings").iterdir()
    commands.wsi("embed", folder, "-o", run, "--stain", "macenko")
    (stained,) = set((run / "embeddings").iterdir()) - {plain}
    found = {name: open_embeddings(stained / f"{name}.zarr") for name in ("pink", "grey")}
    same = {n: np.array_equal(found[n].embeddings, open_embeddings(plain / f"{n}.zarr").embeddings) for n in found}
    assert same == {"pink": False, "grey": True}
    assert found["pink"].contract["stain"]["method"] == "macenko"
    assert [name for name, store in found.items() if "stain_problem" in store.attrs] == ["grey"]


def test_pixels_that_were_encoded_again_are_another_contract_and_raw_ones_are_not(cohort, run):
    assert {one.status for one in embed(cohort, run, spec_of())} == {"done"}
    for patches, status in (("raw", "skipped"), ("jpeg", "done")):
        kept = replace(spec_of(), patches=patches)
        run_stage(tile_slide, [SlideRecord("a", cohort / "a.svs", "a", "a")], kept, RunFolder(run))
        assert [one.status for one in embed(cohort, run, kept)] == [status, "skipped", "skipped"]
    found = [open_embeddings(path).contract.get("pixels") for path in sorted((run / "embeddings").glob("*/a.zarr"))]
    assert sorted(found, key=str) == [None, "jpeg, quality 90"]


def test_a_slide_that_was_replaced_is_not_taken_for_the_one_that_was_embedded(cohort, run, tmp_path):
    shutil.copytree(cohort, tmp_path / "cohort")
    assert {one.status for one in embed(tmp_path / "cohort", run, spec_of())} == {"done"}
    shutil.copy(cohort / "b.svs", tmp_path / "cohort" / "a.svs")
    again = embed(tmp_path / "cohort", run, spec_of())
    assert [one.status for one in again] == ["failed", "skipped", "skipped"]
    assert again[0].problem == "it is not the slide that was tiled: its content differs"
