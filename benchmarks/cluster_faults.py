"""Real runs of `wsi run` whose processes are killed, that share a folder, or that last: what is left of them."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from embedding.store import open_embeddings
from tiling.patches import open_patches

from .cluster_common import LOG, NOTHING, Work, make_slides, weights_of_nothing

PROGRAM = Path(__file__).resolve().parent / "cluster_common.py"
LARGE_PX, SMALL_PX = 512, 256  # sides of slides of 361 tiles, which are two parts, and of 9
OPTIONS = ("--stride-px", 16, "--tissue", "none", "--no-qc", "--set", "jobs.threads=1", "--set", "jobs.shard_tiles=256")
SLOTS = 2  # units that an embedding process works on at a time
PATIENCE_S = 900


@dataclass
class Folder:
    """Slides, and runs over them in folders beside; truth: what an undisturbed run makes of them."""

    scratch: Path
    slides: Path
    options: Sequence[object] = ()
    truth: dict[str, str] = field(default_factory=dict)
    wanted: Work = field(default_factory=lambda: Work([], []))
    seconds: float = 0.0

    @classmethod
    def make(cls, scratch: Path, small: int, large: int, options: Sequence[object] = ()) -> "Folder":
        make_slides(scratch / "slides", small, SMALL_PX, "small")
        make_slides(scratch / "slides", large, LARGE_PX, "large")
        weights_of_nothing(scratch)
        return cls(scratch, scratch / "slides", options)

    def start(self, name: str, *options: object) -> subprocess.Popen[bytes]:
        """`wsi run` over the slides into the folder `name`, in a session of processes of its own."""
        words = [sys.executable, PROGRAM, "run", self.slides, "-o", self.scratch / name, "--backbone", NOTHING]
        words += ["--weights", self.scratch / "nothing.safetensors", *OPTIONS, *self.options, *options]
        environment = {**os.environ, LOG: str(self.log(name)), "OMP_NUM_THREADS": "1"}
        with (self.scratch / f"{name}.txt").open("ab") as said:
            return subprocess.Popen(
                list(map(str, words)), stdout=said, stderr=said, env=environment, start_new_session=True
            )

    def log(self, name: str) -> Path:
        return self.scratch / f"{name}.log"

    def finish(self, name: str, *options: object) -> int:
        """Run it to its end, again where it ended badly, at most three times; how many times it was."""
        for times in range(1, 4):
            if self.start(name, *options).wait(PATIENCE_S) == 0:
                return times
        raise RuntimeError(f"it does not come to an end:\n{(self.scratch / f'{name}.txt').read_text()[-2000:]}")

    def learn(self, *options: object) -> None:
        """What an undisturbed run makes, and in what time."""
        begun = time.perf_counter()
        self.finish("truth", *options)
        self.seconds = time.perf_counter() - begun
        self.truth, self.wanted = digests(self.scratch / "truth"), Work.of(self.log("truth"))
        check_rows(self.scratch / "truth")

    def judge(self, name: str, killed: int) -> dict[str, int]:
        """What is missing, damaged or was done too often; the run's folder is then removed."""
        found, work = digests(self.scratch / name), Work.of(self.log(name)).done()
        wanted, left = self.wanted.done(), leftovers(self.scratch / name)
        report = {
            "missing": len(self.truth.keys() - found.keys()),
            "torn": sum(found[key] != digest for key, digest in self.truth.items() if key in found),
            "beyond": len(found.keys() - self.truth.keys()),
            "duplicate_rows": check_rows(self.scratch / name),
            "killed": killed,
            "extra": (work - wanted).total(),
            "undone": (wanted - work).total(),
            "left": left,
        }
        shutil.rmtree(self.scratch / name)
        self.log(name).unlink()
        return report


def digests(run: Path) -> dict[str, str]:
    """Store → sha256 of the names and bytes of all its files."""
    stores = sorted([*run.glob("tiles/*.zarr"), *run.glob("embeddings/*/*.zarr")])
    found = {}
    for store in stores:
        digest = hashlib.sha256()
        for path in sorted(path for path in store.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(store)}\n".encode() + path.read_bytes())
        found[str(store.relative_to(run))] = digest.hexdigest()
    return found


def check_rows(run: Path) -> int:
    """Rows that are there twice, over all stores, each opened as its reader does, which refuses unfinished ones."""
    twice = 0
    for path in run.glob("tiles/*.zarr"):
        twice += _repeated(open_patches(path).grid.xy)
    for path in run.glob("embeddings/*/*.zarr"):
        twice += _repeated(open_embeddings(path).xy)
    return twice


def _repeated(xy: Any) -> int:
    return len(xy) - len(np.unique(np.asarray(xy), axis=0))


def leftovers(run: Path) -> int:
    """Claims, drafts and parts that are still there."""
    claims = [path for path in (run / "claims").rglob("*") if path.is_file()]
    return len([*claims, *run.rglob(".draft-*"), *run.rglob(".parts-*")])


def kill_workers(folder: Folder, rounds: int, kills: int, options: Sequence[object] = (), seed: int = 0) -> list[dict]:
    """Runs during which random worker processes are killed with SIGKILL, at random moments."""
    chance, found = random.Random(seed), []
    for number in range(rounds):
        name = f"workers-{number}"
        begun, process = time.perf_counter(), folder.start(name, *options)
        killed = done = 0
        due = _next(chance, folder, kills)
        while process.poll() is None:
            time.sleep(0.05)
            if done < kills and time.perf_counter() - begun > due:
                units = _kill_one(process.pid, folder.log(name), chance)
                if units is not None:
                    killed, done = killed + units, done + 1
                    due = time.perf_counter() - begun + _next(chance, folder, kills)
        again = 0 if process.returncode == 0 else folder.finish(name, *options)
        found.append({"kills": done, "again": again, **folder.judge(name, killed)})
        print(f"workers, round {number + 1}: {found[-1]}", file=sys.stderr)
    return found


def _next(chance: random.Random, folder: Folder, kills: int) -> float:
    return chance.uniform(0.2, 1.8) * folder.seconds / (kills + 1)


def _kill_one(run: int, log: Path, chance: random.Random) -> int | None:
    """Kill one of the run's workers that are at work; how many units it was at. None where there is none."""
    work = Work.of(log)
    workers = [child for child in _tree(run) if _is_worker(child) and work.unfinished(child.pid)]
    if not workers:
        return None
    victim = chance.choice(workers)
    try:
        victim.suspend()  # so that it ends nothing while its units are counted
        units = Work.of(log).unfinished(victim.pid)
        victim.kill()
    except psutil.Error:
        return None
    return units


def _tree(run: int) -> list[psutil.Process]:
    try:
        return psutil.Process(run).children(recursive=True)
    except psutil.Error:
        return []


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any("spawn_main" in word for word in process.cmdline())
    except psutil.Error:
        return False


def kill_runs(folder: Folder, rounds: int, options: Sequence[object] = (), seed: int = 1) -> list[dict]:
    """Runs that are killed with all their processes at a random moment, and started again until they come to an end."""
    chance, found = random.Random(seed), []
    for number in range(rounds):
        name, moment = f"runs-{number}", chance.uniform(0.1, 0.95) * folder.seconds
        process = folder.start(name, *options)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        killed = Work.of(folder.log(name)).unfinished()
        again = folder.finish(name, *options)
        found.append({"kills": 1, "moment_s": round(moment, 1), "again": again, **folder.judge(name, killed)})
        print(f"whole runs, round {number + 1}: {found[-1]}", file=sys.stderr)
    return found


def twins(folder: Folder, pairs: int) -> list[dict]:
    """Two runs at the same time on one folder, of one worker each, against one such run."""
    found = []
    one_worker = ("--workers", 1)
    for number in range(pairs):
        begun = time.perf_counter()
        folder.finish(f"one-{number}", *one_worker)
        alone, name = time.perf_counter() - begun, f"two-{number}"
        begun = time.perf_counter()
        both = [folder.start(name, *one_worker) for _ in range(2)]
        codes = [process.wait(PATIENCE_S) for process in both]
        together = time.perf_counter() - begun
        shares = list(shares_of(folder.scratch / name))
        units = folder.wanted.done().total()
        report = {"exits": codes, "seconds": [round(alone, 1), round(together, 1)], "units": units, "shares": shares}
        found.append({**report, **folder.judge(name, 0)})
        shutil.rmtree(folder.scratch / f"one-{number}")
        print(f"twins, pair {number + 1}: {found[-1]}", file=sys.stderr)
    return found


def shares_of(run: Path) -> Iterator[int]:
    """Units that each session of a run folder did: slides and parts, not those it found done."""
    from jobs.receipts import DONE, parse_receipts
    from wsi.publish import read_lines

    sessions: dict[str, int] = {}
    for path in sorted(run.glob("receipts/*.*.jsonl")):
        session = path.name.split(".", 1)[1]
        done = sum(one.status == DONE for one in parse_receipts(read_lines(path)))
        sessions[session] = sessions.get(session, 0) + done
    yield from sessions.values()


@dataclass
class Track:
    """One process: what it took when so many units of the run had ended."""

    role: str
    units: list[int] = field(default_factory=list)
    rss_kib: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def slope(self, values: Sequence[float]) -> float:
        """Of the second half of its life, by least squares: growth per unit that it, or its pool, ended."""
        half = len(values) // 2
        x, y = np.asarray(self.units[half:], float), np.asarray(values[half:], float)
        return float(np.polyfit(x, y, 1)[0]) if len(np.unique(x)) > 2 else 0.0

    def figures(self) -> dict[str, Any]:
        half = len(self.units) // 2
        return {
            "role": self.role,
            "samples": len(self.units),
            "units": self.units[-1] - self.units[0],
            "max_mib": max(self.rss_kib) / 1024,
            "kib_per_unit": self.slope(self.rss_kib),
            "grown_kib": self.slope(self.rss_kib) * (self.units[-1] - self.units[half]),
            "max_files": max(self.files),
            "files_per_unit": self.slope(self.files),
        }


def soak(folder: Folder, name: str = "soak") -> dict[str, Any]:
    """One long run whose processes are watched: memory that is theirs (resident), and open files."""
    tracks: dict[int, Track] = {}
    begun, process = time.perf_counter(), folder.start(name)
    while process.poll() is None:
        units = len(Work.of(folder.log(name)).ended)
        for one in [psutil.Process(process.pid), *_tree(process.pid)]:
            with _gone():
                role = "the run itself" if one.pid == process.pid else "worker" if _is_worker(one) else "other"
                rss, files = one.memory_info().rss / 1024, one.num_fds()
                track = tracks.setdefault(one.pid, Track(role))
                track.units.append(units)
                track.rss_kib.append(rss)
                track.files.append(files)
        time.sleep(0.5)
    seconds, work = time.perf_counter() - begun, Work.of(folder.log(name))
    roles = {int(one[0]): one[1] for one in work.begun}
    for pid, track in tracks.items():
        track.role = f"{roles[pid]} worker" if pid in roles else track.role
    tiles = sum(len(open_patches(path).grid) for path in (folder.scratch / name).glob("tiles/*.zarr"))
    lasting = [track.figures() for track in tracks.values() if len(track.units) > 20]
    return {"exit": process.returncode, "seconds": seconds, "units": len(work.ended), "tiles": tiles,
            "slides": len(list(folder.slides.iterdir())), "processes": lasting}  # fmt: skip


@contextmanager
def _gone() -> Iterator[None]:
    """A process may end while it is looked at."""
    try:
        yield
    except psutil.Error:
        return
