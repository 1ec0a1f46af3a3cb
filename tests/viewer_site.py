"""A run folder with predictions and heatmaps, and the viewer's server on it, for tests."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn

from heatmaps import Heatmap
from heatmaps.scores import write_scores
from jobs.folder import RunFolder
from tests.commands import slides, store, wsi
from viewer.app import make_app
from viewer.catalogue import Catalogue
from viewer.connection import PatientConnection
from viewer.guard import Door
from viewer.readers import Limits, Readers
from viewer.review import open_review
from viewer.serve import ViewSpec, listening, open_catalogue
from viewer.site import Site
from wsi.publish import write_json

TOKEN = "a-token-for-tests"


def said(slide_id: str, tumor: float, **more: Any) -> dict[str, Any]:
    """What `wsi predict` writes of a slide, with a calibrated model of two classes."""
    row = {
        "slide_id": slide_id,
        "bag": slide_id,
        "status": "done",
        "predicted": "tumor" if tumor > 0.5 else "normal",
        "output": {"softmax_normal": 1 - tumor, "softmax_tumor": tumor},
        "probability": {"probability_normal": 1 - tumor, "probability_tumor": tumor},
        "spread": None,
        "set": ["tumor"],
        "abstains": None,
        "flags": [],
        "origin": "mean of 2 folds",
        "tiles": 6,
        "failed_tiles": 0,
        "model": "0123456789ab",
        "fingerprint": "ba9876543210",
    }
    return {**row, **more}


def predict(run: Path, model: str, **tumor: float) -> None:
    for slide_id, value in tumor.items():
        write_json(run / "predictions" / model / f"{slide_id}.json", said(slide_id, value), sealed=True)


def heatmap_of(run: Path, slide_id: str, model: str) -> Heatmap:
    """A heatmap on the slide's tiles whose scores rise from tile to tile; it is written into the run."""
    grid = store(run, slide_id).grid
    scores = np.linspace(0.1, 0.9, len(grid.xy), dtype=np.float32)
    ranks = {"attention rank": scores[::-1].copy(), "gradient": scores * 7 - 3}
    failed = np.array([[0, 0]], np.int64)
    heatmap = Heatmap(slide_id, "tumor softmax", "tumor", scores, grid.xy, grid.span_px, (0.0, 1.0), ranks, failed)
    write_scores(heatmap, RunFolder(run).scores(model, slide_id))
    return heatmap


def make_run(folder: Path, *names: str) -> Path:
    """Slides, cut into tiles by the real command, with predictions of a model `m`."""
    run = folder / "run"
    wsi("tile", slides(folder / "slides", *names), "--out", run, "--tile-px", 128, "--min-tissue", 0.5)
    predict(run, "m", **{name: 0.1 + 0.8 * number / len(names) for number, name in enumerate(names)})
    return run


@dataclass
class Served:
    """A server at work. client: signed in; base: its address; link: lets a browser in."""

    client: httpx.Client
    base: str
    readers: Readers
    catalogue: Catalogue

    @property
    def link(self) -> str:
        return f"{self.base}/?token={TOKEN}"


@contextmanager
def served(source: Path, folder: Path, limits: Limits | None = None, **site: Any) -> Iterator[Served]:
    """The server on `source`, over a real socket; `folder` for what it writes."""
    spec = ViewSpec(str(source), **{key: site.pop(key) for key in ("slides", "urgent", "channels") if key in site})
    catalogue, kind = open_catalogue(spec)
    pages = folder / "pages"
    pages.mkdir(exist_ok=True)
    (pages / "index.html").write_text("<!doctype html><title>viewer</title>")
    sock = listening("127.0.0.1", 0)
    host = f"127.0.0.1:{sock.getsockname()[1]}"
    readers = Readers(2, folder, limits)
    pages_by_name = site.pop("pages", {"index.html": pages / "index.html"})
    whole = Site(catalogue, readers, "test", kind, pages_by_name, review=open_review(catalogue), **site)
    app = make_app(whole, Door(frozenset({host}), TOKEN, "wsi_test"))
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", ws="none", http=PatientConnection, server_header=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    headers = {"origin": f"http://{host}"}  # as a browser sends it with what the page itself asks
    try:
        with httpx.Client(
            base_url=f"http://{host}", cookies={"wsi_test": TOKEN}, headers=headers, timeout=60
        ) as client:
            yield Served(client, f"http://{host}", readers, catalogue)
    finally:
        server.should_exit = True
        thread.join()
        sock.close()
        readers.close()
