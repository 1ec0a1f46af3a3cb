"""What readers make of damaged slides: this engine, OpenSlide and tiffslide, file by file; prints docs/reliability.md's
tables.

    python benchmarks/bench_faults.py [--slides FOLDER] [--only NAME ...] [--log FILE]

Sources: CMU-1-Small-Region.svs whole (JPEG); a corner of TCGA-CR-7395-01A-01-TS1.svs, its tiles as stored (JPEG 2000,
two levels), both from FOLDER (default: $WSI_DATA/slides or ../shared/data/slides; either may be missing); and a
generated Aperio pyramid of three levels. Each file is opened and read whole, all levels in 256-px patches, in a forked
process with 20 s and 6 GiB of address space, and compared bit by bit with what the same reader makes of the sound one.
About 30 minutes.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import openslide
import tiffslide

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.corruptions import Case, corpus
from tests.corruptions_files import crop, strangers
from tests.corruptions_judge import (
    MARKED,
    MIXED,
    NOTHING,
    PATCH,
    RAISED,
    REFUSED,
    SAME,
    WRONG,
    Opened,
    Ours,
    Patch,
    Verdict,
    grid,
    in_child,
    judge,
    whole,
)
from tests.slides import SvsOptions, tissue_like, write_svs

SECONDS, GIB = 20, 1 << 30
HUNG, MEMORY = "hung", "memory"


class OpenSlideReader:
    """As its users call it, but with a fresh handle after an error: the old one would fail for ever."""

    clean = (openslide.OpenSlideError,)

    def __init__(self, path: Path):
        self._path = str(path)
        self._slide = openslide.OpenSlide(self._path)
        self.sizes, self.stored = list(self._slide.level_dimensions), self._slide.level_count
        stated = self._slide.properties.get("openslide.mpp-x")
        self.mpp = None if stated is None else float(stated)

    def patches(self, level: int) -> Iterator[Patch]:
        scale = self._slide.level_downsamples[level]
        for x, y in grid(self.sizes[level]).tolist():
            try:
                rgba = np.asarray(self._slide.read_region((round(x * scale), round(y * scale)), level, (PATCH, PATCH)))
            except openslide.OpenSlideError as error:
                self._slide = openslide.OpenSlide(self._path)
                yield Patch(x, y, error)
                continue
            width, height = self.sizes[level]
            inside = rgba[: max(0, height - y), : max(0, width - x)]
            yield Patch(x, y, None if (inside[..., 3] == 0).any() else rgba[..., :3])


class TiffSlideReader:
    clean = (tiffslide.TiffFileError, openslide.OpenSlideError)

    def __init__(self, path: Path):
        self._slide = tiffslide.TiffSlide(path)
        self.sizes, self.stored = list(self._slide.level_dimensions), self._slide.level_count
        stated = self._slide.properties.get("tiffslide.mpp-x")
        self.mpp = None if stated is None else float(stated)

    def patches(self, level: int) -> Iterator[Patch]:
        scale = self._slide.level_downsamples[level]
        for x, y in grid(self.sizes[level]).tolist():
            corner = round(x * scale), round(y * scale)
            try:
                pixels = self._slide.read_region(corner, level, (PATCH, PATCH), as_array=True)
                yield Patch(x, y, np.asarray(pixels)[..., :3])
            except Exception as error:  # noqa: BLE001  (it has a score of kinds)
                yield Patch(x, y, error)


READERS = {"OpenSlide": OpenSlideReader, "tiffslide": TiffSlideReader, "slidestream": Ours}


@dataclass(frozen=True)
class Result:
    source: str
    family: str
    name: str
    knowable: bool
    sound: bool
    alike: bool
    reader: str
    verdict: Verdict


def main() -> None:
    arguments = _arguments()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for source, path in _sources(arguments.slides, scratch).items():
            if not arguments.only or source in arguments.only:
                results += _run(source, path, corpus(path), scratch)
        if not arguments.only or "other" in arguments.only:
            results += _run("other", None, strangers(scratch), scratch)
    if arguments.log:
        arguments.log.write_text("\n".join(json.dumps(asdict(result)) for result in results) + "\n")
    _print_tables(results)


def _sources(slides: Path, scratch: Path) -> dict[str, Path]:
    found = {"made": write_svs(scratch / "made.svs", tissue_like(1000, 800), SvsOptions(240))}
    if (slides / "CMU-1-Small-Region.svs").exists():
        found["jpeg"] = slides / "CMU-1-Small-Region.svs"
    if (slides / "TCGA-CR-7395-01A-01-TS1.svs").exists():
        found["jpeg2000"] = crop(slides / "TCGA-CR-7395-01A-01-TS1.svs", scratch / "j2k.svs", 4, 6)
    return found


def _run(source: str, base: Path | None, cases: Sequence[Case], scratch: Path) -> list[Result]:
    found: list[Result] = []
    for name, reader in READERS.items():
        truth = whole(reader(base)) if base else None
        for number, case in enumerate(cases):
            path = scratch / f"{name}-{number}.svs"
            case.make(path)
            verdict = _judge_apart(reader, path, truth)
            facts = (source, case.family, case.name, case.knowable, case.sound, case.alike)
            found.append(Result(*facts, name, verdict))
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        print(f"{source}: {name} done, {len(cases)} files", file=sys.stderr, flush=True)
    return found


def _judge_apart(reader: type[Opened], path: Path, truth: list[np.ndarray] | None) -> Verdict:
    ended = in_child(lambda say: say(json.dumps(asdict(judge(reader, path, truth)))), SECONDS, 6 * GIB)
    if ended.code is None:
        return Verdict(HUNG)
    if ended.code != 0:
        return Verdict(signal.Signals(-ended.code).name if ended.code < 0 else f"exit {ended.code}")
    verdict = Verdict(**json.loads(ended.said))
    return Verdict(MEMORY) if ended.peak_bytes > 2 * GIB or "MemoryError" in verdict.words else verdict


ROWS = {
    "refused on opening": lambda r: r.verdict.kind == REFUSED,
    "damaged tiles raise or are marked, all others right": lambda r: r.verdict.kind in (RAISED, MARKED),
    "pixels identical": lambda r: r.verdict.kind == SAME,
    "**wrong pixels or size, not marked, though the file shows it**": lambda r: _is_wrong(r) and r.knowable,
    "wrong pixels or size, not marked, which nothing in the file shows": lambda r: _is_wrong(r) and not r.knowable,
    "opened, and nothing in it": lambda r: r.verdict.kind == NOTHING,
    "over 2 GiB, or memory refused": lambda r: r.verdict.kind == MEMORY,
    "over 20 s": lambda r: r.verdict.kind == HUNG,
    "SIGABRT": lambda r: r.verdict.kind == "SIGABRT",
    "other deaths": lambda r: r.verdict.kind.startswith(("SIG", "exit")) and r.verdict.kind != "SIGABRT",
}


def _is_wrong(result: Result) -> bool:
    return result.verdict.kind in (WRONG, MIXED)


def _print_tables(results: list[Result]) -> None:
    files = {(r.source, r.family, r.name): r for r in results}.values()
    alike = sum(r.alike for r in files)
    print(f"\n{alike} damaged copies of slides + {len(files) - alike} other files\n")
    print(f"| what happened | {' | '.join(READERS)} |\n|---|{'---:|' * len(READERS)}")
    for row, test in ROWS.items():
        print(f"| {row} | {' | '.join(_both(results, name, test) for name in READERS)} |")
    unclean = " | ".join(str(sum(r.reader == name and not r.verdict.clean for r in results)) for name in READERS)
    print(f"| (of all: an exception not of the library's own kind) | {unclean} |")
    print("\nWrong and not marked, by family: shown by the file / not shown by it\n")
    print(f"| family | files | {' | '.join(READERS)} |\n|---|---:|{'---:|' * len(READERS)}")
    for family, count in Counter(r.family for r in files).items():
        cells = [[r for r in results if r.family == family and r.reader == name and _is_wrong(r)] for name in READERS]
        texts = [f"{sum(r.knowable for r in cell)} / {sum(not r.knowable for r in cell)}" for cell in cells]
        print(f"| {family} | {count} | {' | '.join(texts)} |")
    scales = [r for r in results if r.family == "scale"]
    passed = [sum(_is_false_scale(r) for r in scales if r.reader == name) for name in READERS]
    print(f"\nFalse pixel sizes passed on as true, of {len(scales) // len(READERS)}: ", end="")
    print(", ".join(f"{name} {count}" for name, count in zip(READERS, passed, strict=True)))
    lost = [sum(r.sound and r.reader == name and r.verdict.kind != SAME for r in results) for name in READERS]
    print(f"Sound files not read rightly, of {sum(r.sound for r in files)}: ", end="")
    print(", ".join(f"{name} {count}" for name, count in zip(READERS, lost, strict=True)))
    for r in results:
        if r.reader == "slidestream" and (
            (_is_wrong(r) and r.knowable) or not r.verdict.clean or r.verdict.kind == HUNG
        ):
            print(f"look: {r}", file=sys.stderr)


def _both(results: list[Result], name: str, test: object) -> str:
    counts = [sum(test(r) for r in results if r.reader == name and r.alike == alike) for alike in (True, False)]
    return f"{counts[0]} + {counts[1]}" if counts[1] else str(counts[0])


def _is_false_scale(result: Result) -> bool:
    mpp = result.verdict.mpp
    return mpp is not None and not (result.name == "mpp_0,499" and abs(mpp - 0.499) < 1e-6)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("WSI_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
    parser.add_argument("--slides", type=Path, default=data / "slides")
    parser.add_argument("--only", nargs="*", choices=("jpeg", "jpeg2000", "made", "other"))
    parser.add_argument("--log", type=Path, help="write every verdict there, a line of JSON each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
