"""The command line inside the test's own process, and what tests of it look at."""

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from jobs.receipts import latest, read_receipts
from tests.slides import SvsOptions, tissue_like, write_svs
from tiling import PatchStore, open_patches

GLASS = 243


def wsi(*arguments: object, code: int = 0) -> str:
    """Run `wsi` with these arguments; returns what it printed. Slides are read in this process, for speed."""
    from cli.main import main

    words = [*map(str, arguments)]
    if arguments[0] in ("tile", "embed", "run", "predict", "heatmap") and "--executor" not in words:
        words += ["--executor", "serial"]
    printed, ended = io.StringIO(), 0
    with patch.object(sys, "argv", ["wsi", *words]), redirect_stdout(printed), redirect_stderr(printed):
        try:
            main()
        except SystemExit as end:
            ended = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    text = printed.getvalue()
    assert ended == code, text
    assert "Traceback" not in text, text
    return text


def section(
    width: int = 1200, height: int = 960, box: Sequence[int] = (240, 240, 960, 720), seed: int = 0
) -> NDArray[np.uint8]:
    """Glass with a rectangle of tissue, box = left, top, right, bottom: uint8 (height, width, 3)."""
    left, top, right, bottom = box
    pixels = np.random.default_rng(seed).normal(GLASS, 1, (height, width, 3)).clip(0, 255).astype(np.uint8)
    pixels[top:bottom, left:right] = tissue_like(right - left, bottom - top, seed)
    return pixels


def slides(folder: Path, *names: str, options: SvsOptions | None = None) -> Path:
    """A folder of such sections as SVS at 0.5 µm per pixel; returns it."""
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        write_svs(folder / f"{name}.svs", section(seed=seed), options)
    return folder


def statuses(run: Path, stage: str = "tile") -> dict[str, str]:
    """slide_id → what became of it last."""
    return {key: one.status for key, one in latest(read_receipts(run / "receipts" / f"{stage}.jsonl")).items()}


def store(run: Path, slide_id: str) -> PatchStore:
    return open_patches(run / "tiles" / f"{slide_id}.zarr")


def corners(run: Path, slide_id: str) -> list[tuple[int, int]]:
    """Top-left corners of the slide's tiles in level-0 pixels, in their order."""
    return [(x, y) for x, y in store(run, slide_id).grid.xy.tolist()]
