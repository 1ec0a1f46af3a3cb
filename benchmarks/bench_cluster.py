"""What many slides on many machines cost, and what is left after faults.

    python benchmarks/bench_cluster.py PART [--small] [--json FILE] [--scratch FOLDER]

overhead  the engine beyond reading and computing, ms a slide and stage, on 1,000 small slides and a backbone that
          computes nothing; memory and processor time of the scheduler
scaling   two workers against one
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import cluster_overhead
from benchmarks.cluster_common import circumstances, keep, know_nothing

know_nothing()  # also in worker processes, which import this file when they start


def show_overhead(scratch: Path, small: bool, log: Path | None) -> None:
    slides, rounds, executors = (20, 1, ("serial",)) if small else (1000, 3, ("serial", "processes"))
    found = cluster_overhead.overhead(scratch, slides, executors, rounds)
    memory = cluster_overhead.scheduler_memory(scratch, 50 if small else 10_000)
    print(f"\n{slides} slides, median of {rounds}\n\n{cluster_overhead.show_overhead(found, executors)}")
    print(f"\n{cluster_overhead.show_memory(memory)}")
    keep(log, "overhead", {"slides": slides, "rounds": rounds, "stages": found, "scheduler": memory})


def show_scaling(scratch: Path, small: bool, log: Path | None) -> None:
    found = cluster_overhead.scaling(scratch, 8 if small else 60, 1024 if small else 3072, 1 if small else 5)
    print(f"\n2 workers against 1: {found['ratio']:.2f} x (needs 1.8), of {found['ratios']}")
    print(f"two plain processes against one, in the same minutes: {found['plain_ratio']:.2f} x")
    keep(log, "scaling", found)


PARTS = {"overhead": show_overhead, "scaling": show_scaling}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--small", action="store_true", help="in seconds, to see that it works: no figures")
    parser.add_argument("--json", type=Path, help="also add what was found to this file")
    parser.add_argument("--scratch", type=Path, help="where slides and runs are written; by default a temporary folder")
    given = parser.parse_args()
    if given.scratch is not None:
        given.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.scratch, prefix="bench-cluster-") as folder:
        before = os.getloadavg()[0]
        PARTS[given.part](Path(folder), given.small, given.json)
    now = circumstances()
    print(f"\nload average {before:.1f} before, {now['load'][0]:.1f} after; {now['processors']} processors")


if __name__ == "__main__":
    main()
