"""What many slides on many machines cost, and what is left after faults.

    python benchmarks/bench_cluster.py PART [--small] [--json FILE] [--scratch FOLDER]

overhead  the engine beyond reading and computing, ms a slide and stage, on 1,000 small slides and a backbone that
          computes nothing; memory and processor time of the scheduler
scaling   two workers against one
simulate  10,000 slides in three shards each on 128 workers of which 2 % an hour are lost, under the real scheduler in
          virtual time: one session, and four on one folder. Seconds of the work are those of `measure`, where they are
          in --json
measure   seconds of a tile stage and of a shard of about 1,024 tiles with the default backbone, and how they vary
kills     kill -9 of random workers, three times in each of 20 runs of 200 slides
restarts  kill -9 of all processes of such a run at a random moment, and the same command again, 20 times
twins     two runs on one folder against one
soak      600 slides through tile and embed with every process watched: memory and open files

--small does each in seconds, to see that it works. --part-options are further options of `wsi run` for the parts from
kills on, such as "--executor dask".
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import cluster_faults, cluster_overhead
from benchmarks.cluster_common import circumstances, keep, know_nothing, known, table
from benchmarks.cluster_simulate import simulate
from benchmarks.cluster_virtual import Cluster

know_nothing()  # also in worker processes, which import this file when they start

SLIDES, LARGE = 190, 10  # of the runs whose processes are killed
FACTS = (
    "missing",
    "torn",
    "beyond",
    "duplicate_rows",
    "undone",
    "left",
    "kills",
    "killed",
    "extra",
    "again",
)


@dataclass(frozen=True)
class Given:
    """What the user asked for."""

    scratch: Path
    small: bool
    log: Path | None
    rounds: int | None
    options: Sequence[str]

    def count(self, small: int, whole: int) -> int:
        return small if self.small else whole

    def rounds_of(self, whole: int) -> int:
        return self.rounds or self.count(1, whole)


def show_overhead(given: Given) -> None:
    slides, rounds = given.count(20, 1000), given.rounds_of(3)
    executors = ("serial",) if given.small else ("serial", "processes")
    found = cluster_overhead.overhead(given.scratch, slides, executors, rounds)
    memory = cluster_overhead.scheduler_memory(given.scratch, given.count(50, 10_000))
    print(f"\n{slides} slides, median of {rounds}\n\n{cluster_overhead.show_overhead(found, executors)}")
    print(f"\n{cluster_overhead.show_memory(memory)}")
    keep(given.log, "overhead", {"slides": slides, "rounds": rounds, "stages": found, "scheduler": memory})


def show_scaling(given: Given) -> None:
    slides, side = given.count(8, 60), given.count(1024, 3072)
    found = cluster_overhead.scaling(given.scratch, slides, side, given.rounds_of(5))
    ratios = ", ".join(f"{ratio:.2f}" for ratio in found["ratios"])
    print(f"\n2 workers against 1: {found['ratio']:.2f} x (needs 1.8), median of {ratios}")
    print(f"two plain processes against one, in the same minutes: {found['plain_ratio']:.2f} x")
    keep(given.log, "scaling", found)


def show_measure(given: Given) -> None:
    found = cluster_overhead.measure(given.scratch, given.count(1, 4), given.count(1024, 6144))
    print("\n" + table(("unit", "median s", "spread (sd of the logarithm)"), [(k, *v) for k, v in found.items()]))
    keep(given.log, "measure", found)


def show_simulate(given: Given) -> None:
    measured = known(given.log).get("measure", {})
    base = Cluster(slides=given.count(40, 10_000), workers=given.count(8, 128))
    if measured:
        spread = max(measured["tile"][1], measured["shard"][1])
        seconds = {"tile_s": measured["tile"][0], "shard_s": measured["shard"][0], "small_s": measured["join"][0]}
        base = replace(base, **seconds, spread=spread)
    quarter = replace(base, workers=base.workers // 4, sessions=4)
    cases = {
        "one session": base,
        "one session, durations spread twice as wide, 50 ms more of a slow disk a unit": replace(
            base, spread=max(0.5, 2 * base.spread), files_s=0.05
        ),
        "four sessions on one folder": quarter,
        "four sessions, of which half are lost in an hour": replace(quarter, session_preempted=0.5),
    }
    rows, found = [], {}
    for name, asked in cases.items():
        one = found[name] = simulate(asked, given.scratch / name.replace(" ", "-"))
        keys = ("hours", "utilisation", "lost", "unfinished_units", "twice", "killed", "lost_sessions",
                "scheduler_ms_per_unit")  # fmt: skip
        rows.append((name, *(one[key] for key in keys)))
        print(f"{name}: {one}", file=sys.stderr)
    head = ("", "hours", "utilisation", "slides lost", "units not done", "done twice", "units killed", "sessions lost",
            "scheduler, ms a unit")  # fmt: skip
    print(f"\n{base}\n\n{table(head, rows)}")
    keep(given.log, "simulate", found)


def show_kills(given: Given) -> None:
    folder, rounds = _folder_to_kill(given), given.rounds_of(20)
    _show_killed(given, folder, "kills", cluster_faults.kill_workers(folder, rounds, given.count(1, 3)))


def show_restarts(given: Given) -> None:
    folder = _folder_to_kill(given)
    _show_killed(given, folder, "restarts", cluster_faults.kill_runs(folder, given.rounds_of(20)))


def _folder_to_kill(given: Given) -> cluster_faults.Folder:
    small, large = given.count(8, SLIDES), given.count(1, LARGE)
    folder = cluster_faults.Folder.make(given.scratch, small, large, given.options)
    folder.learn()
    return folder


def _show_killed(given: Given, folder: cluster_faults.Folder, part: str, found: list[dict[str, Any]]) -> None:
    units, slides = folder.wanted.done().total(), len(list(folder.slides.iterdir()))
    print(f"\n{slides} slides, {units} units; sums over {len(found)} rounds\n")
    row = [sum(one[fact] for one in found) for fact in FACTS]
    print(table((f"killed ({part})", *(fact.replace("_", " ") for fact in FACTS)), [("all rounds", *row)]))
    worst = max(one["extra"] - one["killed"] for one in found)
    print(f"\nwork done again less units that were killed, in the worst round: {worst} (needs 0 at most)")
    keep(given.log, part, {"units": units, "slides": slides, "rounds": found})


def show_twins(given: Given) -> None:
    folder = cluster_faults.Folder.make(given.scratch, given.count(8, 100), given.count(1, 10), given.options)
    folder.learn()
    found = cluster_faults.twins(folder, given.rounds_of(3))
    rows = [(one["units"], one["extra"], one["undone"], one["torn"], " + ".join(map(str, one["shares"])),
             *one["seconds"], one["seconds"][0] / one["seconds"][1]) for one in found]  # fmt: skip
    print("\n" + table(("units of one run", "beyond these", "undone", "other bytes", "done by each", "one run, s",
                        "two, s", "ratio"), rows))  # fmt: skip
    keep(given.log, "twins", {"pairs": found})


def show_soak(given: Given) -> None:
    folder = cluster_faults.Folder.make(given.scratch, given.count(40, 540), given.count(2, 60), given.options)
    found = cluster_faults.soak(folder)
    facts = ("role", "units", "samples", "max_mib", "kib_per_unit", "grown_kib", "max_files", "files_per_unit")
    print(f"\n{found['slides']} slides, {found['tiles']:,} tiles, {found['units']} units in {found['seconds']:.0f} s")
    print("slopes by least squares over the second half of each process's life\n")
    rows = [[one[fact] for fact in facts] for one in found["processes"]]
    print(table(("process", "units meanwhile", "samples", "most MiB", "KiB a unit", "KiB, second half", "most files",
                 "files a unit"), rows))  # fmt: skip
    keep(given.log, "soak", found)


PARTS: dict[str, Callable[[Given], Any]] = {
    "overhead": show_overhead,
    "scaling": show_scaling,
    "measure": show_measure,
    "simulate": show_simulate,
    "kills": show_kills,
    "restarts": show_restarts,
    "twins": show_twins,
    "soak": show_soak,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--small", action="store_true", help="in seconds, to see that it works: no figures")
    parser.add_argument("--json", type=Path, help="also add what was found to this file")
    parser.add_argument("--scratch", type=Path, help="where slides and runs are written; by default a temporary folder")
    parser.add_argument("--rounds", type=int, help="instead of the usual number")
    parser.add_argument("--part-options", default="", help="further options of `wsi run`")
    said = parser.parse_args()
    if said.scratch is not None:
        said.scratch.mkdir(parents=True, exist_ok=True)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=said.scratch, prefix="bench-cluster-") as folder:
        PARTS[said.part](Given(Path(folder), said.small, said.json, said.rounds, shlex.split(said.part_options)))
    now = circumstances()
    print(f"\nload average {before:.1f} before, {now['load'][0]:.1f} after; {now['processors']} processors")


if __name__ == "__main__":
    main()
