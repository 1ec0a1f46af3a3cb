"""What the parts of bench_cluster.py share: slides, a backbone that computes nothing, and clocks.

As a program it is `wsi` with that backbone, `python benchmarks/cluster_common.py run SLIDES --backbone nothing ...`:
worker processes import the file that was started, so they know the backbone, too.
"""

import json
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from embedding.backbone import Backbone  # noqa: E402
from embedding.backbones import BACKBONES, find_backbone  # noqa: E402
from jobs import attempt  # noqa: E402

NOTHING = "nothing"
LOG = "BENCH_CLUSTER_LOG"  # names a file to which workers write what they begin and end
SMALL_PX = 512  # side of a small slide: four tiles of 224 px


def nothing() -> Backbone:
    """The entry of a backbone that computes nothing: one matrix of 8 numbers a tile, no layer."""
    options = {"patch_size": 224, "img_size": 224, "embed_dim": 8, "depth": 0, "num_heads": 1, "num_classes": 0}
    return replace(
        find_backbone("dinov2-s"),
        name=NOTHING,
        arch="vit_small_patch16_224",
        weights="file:made by bench_cluster.py",
        revision=None,
        file=None,
        dim=8,
        variants={},
        patch_px=224,
        precision="fp32",
        options=options,
    )


def know_nothing() -> None:
    """From now on this process knows that backbone by its name."""
    BACKBONES[NOTHING] = nothing()


def log_work() -> None:
    """From now on this process writes a line when it begins a unit, and one when the unit has ended, where the
    environment names a file for it."""
    insist = attempt._insist

    def logged(stage: Any, spec: Any, folder: Any, unit: Any, record: Any, split: Any) -> Any:
        kind = "join" if unit.join else "part" if unit.part is not None else "slide"
        words = f"{os.getpid()} {unit.stage} {unit.name} {kind}"
        _write_line(f"+ {words}")
        outcome = insist(stage, spec, folder, unit, record, split)
        _write_line(f"- {words} {getattr(outcome, 'status', 'split')}")
        return outcome

    if LOG in os.environ:
        attempt._insist = logged


def _write_line(line: str) -> None:
    with open(os.environ[LOG], "ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


@dataclass(frozen=True)
class Work:
    """What processes did, by their log: one line of it each.

    begun, ended  (process, stage, unit, kind), with what became of it
    """

    begun: list[tuple[str, ...]]
    ended: list[tuple[str, ...]]

    @classmethod
    def of(cls, log: Path) -> "Work":
        lines = log.read_text().splitlines() if log.exists() else []
        words = [tuple(line.split()) for line in lines]
        return cls([one[1:] for one in words if one[0] == "+"], [one[1:] for one in words if one[0] == "-"])

    def done(self) -> Counter[tuple[str, ...]]:
        """(stage, unit, kind) → how many times it was worked on, to its end or not; to find that a slide is there
        already, or that it is to be split, is no work."""
        idle = Counter(one[1:4] for one in self.ended if one[4] in ("skipped", "split"))
        return Counter(one[1:] for one in self.begun) - idle

    def unfinished(self, process: int | None = None) -> int:
        """Units that were begun and did not end, of all processes or of one."""
        mine = [[one for one in lines if process in (None, int(one[0]))] for lines in (self.begun, self.ended)]
        return len(mine[0]) - len(mine[1])


def weights_of_nothing(folder: Path) -> Path:
    """A file with weights of `nothing`, random but always the same."""
    import torch
    from safetensors.torch import save_file

    from embedding.networks import find_family

    path = folder / "nothing.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        state = find_family("timm").create(nothing()).state_dict()
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def make_slides(folder: Path, count: int, side_px: int = SMALL_PX, prefix: str = "s") -> list[Path]:
    """`count` SVS files, square, all tissue, of one picture but each with bytes of its own at its end: to the engine
    they are different slides. Those that are there are kept."""
    from tests.slides import tissue_like, write_svs

    folder.mkdir(parents=True, exist_ok=True)
    model = folder.parent / f"model-{side_px}.svs"
    if not model.exists():
        write_svs(model, tissue_like(side_px, side_px))
    content, paths = model.read_bytes(), [folder / f"{prefix}{number:05d}.svs" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            path.write_bytes(content + f"{prefix}{number:08d}".encode())
    return paths


@dataclass(frozen=True)
class Took:
    """Seconds by the wall, and of processors: of this process and of the children that it waited for."""

    wall_s: float
    cpu_s: float


def took(work: Callable[[], Any]) -> tuple[Took, Any]:
    wall, cpu = time.perf_counter(), _cpu_s()
    result = work()
    return Took(time.perf_counter() - wall, _cpu_s() - cpu), result


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def spread_of(seconds: Sequence[float]) -> tuple[float, float]:
    """(median, standard deviation of the logarithms)."""
    return statistics.median(seconds), statistics.stdev(map(math.log, seconds)) if len(seconds) > 1 else 0.0


def tree_cpu_s() -> float:
    """Seconds of processors that this process took so far, and those of its children that live."""
    import psutil

    found = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):  # one that ends while it is asked
            times = process.cpu_times()
            found += times.user + times.system
    return found


def circumstances() -> dict[str, Any]:
    """Of the machine, now: without these a figure says little."""
    load = os.getloadavg()
    return {"processors": len(os.sched_getaffinity(0)), "load": [round(one, 2) for one in load],
            "system": platform.platform(terse=True), "python": platform.python_version()}  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """In Markdown, numbers to the right."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_shown, row))} |" for row in rows)])


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def keep(path: Path | None, part: str, found: dict[str, Any]) -> None:
    """Add what a part found to the JSON file at `path`, beside that of the others."""
    if path is not None:
        path.write_text(json.dumps({**known(path), part: {**found, **circumstances()}}, indent=1) + "\n")


def known(path: Path | None) -> dict[str, Any]:
    """What was found earlier."""
    return json.loads(path.read_text()) if path is not None and path.exists() else {}


if __name__ in ("__main__", "__mp_main__"):
    know_nothing()
    log_work()

if __name__ == "__main__":
    from cli.main import main

    main()
