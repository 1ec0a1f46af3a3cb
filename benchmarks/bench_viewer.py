"""Tiles for the browser: `wsi view` against OpenSlide's DeepZoomGenerator, both over HTTP on this machine, in one run.

    python benchmarks/bench_viewer.py SLIDE… [--tiles 300] [--at-once 6] [--worklist 10000]

A client looks at the slides as a person does: a place at a fine level, its neighbours, out two levels, in again
elsewhere, now on this slide and now on that one, `--at-once` requests at a time as browsers make them. Every tile is
asked for once, so none comes from a cache; the slides are open and in the page cache on both sides. The peer is the
server of OpenSlide's example, without Flask: DeepZoomGenerator(512, 0), JPEG of Pillow at the same quality, threads.
Also printed: memory of all the server's processes (PSS), and how long a page of a worklist of 10,000 slides takes.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import local

import httpx

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
TILE_PX, QUALITY = 512, 85
SORTS = ("urgency", "uncertainty", "id")


@dataclass(frozen=True)
class Target:
    """A server. address: of a tile, with slide, level, x and y."""

    name: str
    process: subprocess.Popen
    base: str
    token: str
    address: str


def serve_peer(paths: list[str]) -> None:
    """OpenSlide's side, in a process of its own."""
    import io

    import openslide
    from openslide.deepzoom import DeepZoomGenerator

    pyramids = {Path(path).stem: DeepZoomGenerator(openslide.OpenSlide(path), TILE_PX, 0) for path in paths}

    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, -1

        def do_GET(self) -> None:
            _, slide, level, x, y = self.path.split("/")
            out = io.BytesIO()
            pyramids[slide].get_tile(int(level), (int(x), int(y))).save(out, "jpeg", quality=QUALITY)
            self.send_response(200)
            self.send_header("content-length", str(out.tell()))
            self.end_headers()
            self.wfile.write(out.getvalue())
            self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}/?token=x", flush=True)
    server.serve_forever()


def begin(name: str, command: list[str], address: str) -> Target:
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.match(r"(http://[^/]*)/\?token=(\S+)", process.stdout.readline())
    assert found is not None
    return Target(name, process, found[1], found[2], address)


def walk(sizes: dict[str, tuple[int, int]], count: int, seed: int = 0) -> list[tuple[str, int, int, int]]:
    """(slide, level, x, y) of tiles in the order in which somebody would see them, none of them twice."""
    chance, found = random.Random(seed), {}
    slides = list(sizes)
    while len(found) < count:
        slide = chance.choice(slides)
        width, height = sizes[slide]
        top = (max(width, height) - 1).bit_length()
        for level in (top, top - 2, top):
            factor = 1 << (top - level)
            cols, rows = -(-width // factor // TILE_PX), -(-height // factor // TILE_PX)
            x, y = chance.randrange(cols), chance.randrange(rows)
            near = [(x + right, y + down) for right in range(-1, 2) for down in range(-1, 1)]
            found |= {(slide, level, a, b): None for a, b in near if 0 <= a < cols and 0 <= b < rows}
    return list(found)[:count]


def measure(target: Target, tiles: list[tuple[str, int, int, int]], at_once: int) -> list[float]:
    """Milliseconds from asking for a tile to having all of it."""
    mine = local()

    def ask(tile: tuple[str, int, int, int]) -> float:
        if not hasattr(mine, "client"):
            head = {"authorization": f"Bearer {target.token}"}
            mine.client = httpx.Client(base_url=target.base, headers=head, timeout=60)
            mine.client.get("/nothing" if target.name == "wsi view" else target.address.format(*tile))
        slide, level, x, y = tile
        begun = time.perf_counter()
        answer = mine.client.get(target.address.format(slide, level, x, y))
        took = (time.perf_counter() - begun) * 1e3
        assert answer.status_code == 200, answer.text
        return took

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, tiles))


def memory_mib(process: subprocess.Popen) -> float:
    """PSS of a process and all below it: shared pages count once."""
    pids, total = [process.pid], 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += [int(child) for child in (task / "children").read_text().split()]
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            total += int(line.split()[1]) if line.startswith("Pss:") else 0
    return total / 1024


def quantile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100)[round(share * 100) - 1]


def worklist(count: int) -> None:
    """Milliseconds for a page of a run with so many predicted slides."""
    from jobs.folder import RunFolder
    from tests.run_folders import Writer
    from tests.viewer_site import said
    from viewer.catalogue import Catalogue
    from viewer.worklist import Query, page

    with tempfile.TemporaryDirectory() as folder:
        root, ids = Path(folder), [f"slide-{number:05}" for number in range(count)]
        for stage in ("tile", "embed", "predict"):
            Writer(root, "one").write_many(stage, ids, tiles=5000).say(ended="now")
        predictions = root / "predictions" / "m"
        predictions.mkdir(parents=True)
        for number, name in enumerate(ids):
            (predictions / f"{name}.json").write_text(json.dumps(said(name, number / count)))
        catalogue = Catalogue(RunFolder(root), {})
        begun = time.perf_counter()
        catalogue.look()
        read_s = time.perf_counter() - begun
        times = []
        for query in (Query(sort, offset=first) for first in range(0, 800, 100) for sort in SORTS):
            begun = time.perf_counter()
            page(catalogue.look(), {}, query)
            times.append((time.perf_counter() - begun) * 1e3)
    print(f"worklist of {count:,}: read in {read_s:.1f} s, then a page in {quantile(times, 0.5):.0f} ms, "
          f"p95 {quantile(times, 0.95):.0f} ms")  # fmt: skip


def compare(targets: tuple[Target, Target], tiles: list[tuple[str, int, int, int]], at_once: int) -> None:
    """The same tiles of both, one after the other, and the ratio."""
    found = []
    for target in targets:
        times = measure(target, tiles, at_once)
        found.append([quantile(times, share) for share in (0.5, 0.95, 0.99)])
        words = "p50 {:5.1f} ms, p95 {:5.1f} ms, p99 {:5.1f} ms".format(*found[-1])
        print(f"{target.name:>18}, {at_once} at once: {len(tiles)} tiles, {words}")
    p50, p95, _ = (theirs / ours for ours, theirs in zip(*found, strict=True))
    print(f"{'':>18}  the peer takes {p50:.1f} x as long at the median, {p95:.1f} x at p95")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("slides", nargs="*")
    parser.add_argument("--tiles", type=int, default=300)
    parser.add_argument("--at-once", type=int, default=6)
    parser.add_argument("--worklist", type=int, default=10_000)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        serve_peer(given.slides)
        return
    if given.slides:
        against(given.slides, given.tiles, given.at_once)
    worklist(given.worklist)


def against(paths: list[str], count: int, at_once: int) -> None:
    import openslide

    paths = [str(Path(path).resolve()) for path in paths]
    sizes = {Path(path).stem: openslide.OpenSlide(path).dimensions for path in paths}
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            (Path(folder) / Path(path).name).symlink_to(path)
        ours = [sys.executable, "-c", "from cli.main import main; main()", "view", folder]
        peer = [sys.executable, __file__, "--peer", *paths]
        targets = (
            begin("wsi view", ours, "/api/slides/{}/tiles/{}/{}_{}.jpg"),
            begin("DeepZoomGenerator", peer, "/{}/{}/{}/{}"),
        )
        try:
            for target in targets:  # slides open everywhere, pages in memory
                measure(target, walk(sizes, 20 * len(sizes) + 20, seed=99), at_once)
            before = memory_mib(targets[0].process)
            for many in (1, at_once):
                compare(targets, walk(sizes, count, seed=many), many)
            after, peers = memory_mib(targets[0].process), memory_mib(targets[1].process)
            print(f"memory, all processes: wsi view {before:.0f} MiB, then {after:.0f}; the peer {peers:.0f}")
        finally:
            for target in targets:
                target.process.terminate()
                target.process.wait(10)


if __name__ == "__main__":
    main()
