"""What the engine costs beyond reading and computing, slide by slide; and what its scheduler holds in memory."""

import resource
import shutil
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from jobs.config import RunSpec, resolve
from jobs.executors import ExecSpec
from jobs.folder import RunFolder
from jobs.lines import Line
from jobs.manifest import SlideRecord
from jobs.model_stages import open_model, predict_slide
from jobs.outcome import Outcome, Split, Stage
from jobs.receipts import DONE, FAILED, Receipt
from jobs.run import Watcher, run_stages
from jobs.stages import embed_slide
from jobs.tile_stage import open_record, plan_slide, tile_slide

from .cluster_common import NOTHING, Took, make_slides, spread_of, table, took, tree_cpu_s, weights_of_nothing

TARGET_MS, TARGET_BYTES = 5.0, 1000
LABELLED = 16  # slides that the head is trained on
PARTS = 3


def nothing_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    """A stage that does nothing: what is left is claims, receipts, queues, and pipes where there are workers."""
    return Outcome(DONE, "mark", 4)


def parted_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Split:
    """A stage that does nothing, in three parts and their join."""
    return Split(folder.root / "parts" / record.slide_id, PARTS, 3000, parted_part, parted_join)


def parted_part(record: SlideRecord, spec: RunSpec, folder: RunFolder, number: int) -> tuple[int, int]:
    return 1000, 0


def parted_join(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    return Outcome(DONE, "mark", 3000)


@dataclass(frozen=True)
class Bench:
    """Slides, and how they are asked for."""

    records: Sequence[SlideRecord]
    settings: dict[str, Any]
    scratch: Path

    def spec(self, executor: str, **settings: Any) -> RunSpec:
        jobs = {"executor": executor, "workers": 2, "threads": 1}
        return resolve({**self.settings, **settings, "jobs": jobs})


def records_of(paths: Iterable[Path]) -> list[SlideRecord]:
    return [
        SlideRecord(path.stem, path, path.stem, path.stem, label="AB"[number % 2]) for number, path in enumerate(paths)
    ]


def run(stage: Stage, bench: Bench, spec: RunSpec, out: Path) -> dict[str, float]:
    """One stage over all slides: ms a slide, by the wall and of processors (the run's and its workers'), from the
    first receipt to the last; before it: until the first receipt (processes start, libraries and models are loaded)."""
    line = Line(stage, {record.slide_id: record for record in bench.records})
    count, ends, cpu = len(bench.records), [], []

    def note(receipt: Receipt) -> None:
        ends.append(time.perf_counter())
        if len(ends) in (1, count):
            cpu.append(tree_cpu_s())

    begun = time.perf_counter()
    run_stages([line], spec, RunFolder(out), [Watcher(receipt=note)])
    failed = [receipt for receipt in line.receipts.values() if receipt.status == FAILED]
    if failed:
        raise RuntimeError(f"{len(failed)} slides failed, the first: {failed[0].problem}\n{failed[0].trace}")
    later = max(1, count - 1)
    return {
        "wall_ms": 1e3 * (ends[-1] - ends[0]) / later,
        "cpu_ms": 1e3 * (cpu[-1] - cpu[0]) / later,
        "start_s": ends[0] - begun,
    }


def bare(work: Callable[[Any], Any], items: Sequence[Any]) -> dict[str, float]:
    """The same without the engine: a plain loop in one process. The first item loads libraries: it does not count."""
    work(items[0])
    spent, _ = took(lambda: [work(item) for item in items[1:]])
    count = max(1, len(items) - 1)
    return {"wall_ms": 1e3 * spent.wall_s / count, "cpu_ms": 1e3 * spent.cpu_s / count}


def read_bare(bench: Bench) -> Callable[[SlideRecord], object]:
    """What tiling does to pixels: open, find tissue, plan the grid, read the thumbnail, draw the tissue on it."""
    from heatmaps.tissue_map import TissueMap, draw_tissue, write_outlines
    from tiling.thumbnail import read_thumbnail
    from tiling.tissue import tissue_outline

    spec, drawn = bench.spec("serial"), bench.scratch / "tissue"
    drawn.mkdir(exist_ok=True)

    def work(record: SlideRecord) -> None:
        with open_record(record, spec) as slide:
            planned, thumbnail = plan_slide(record, spec, slide), read_thumbnail(slide)
        grid, outline = planned.grid, tissue_outline(planned.tissue)
        found = TissueMap(record.slide_id, outline, None, grid.xy, grid.span_px)
        write_outlines(found, drawn / f"{record.slide_id}.geojson")
        draw_tissue(thumbnail.pixels, thumbnail.scale, found, drawn / f"{record.slide_id}.jpg")

    return work


def embed_bare(bench: Bench, out: Path) -> Callable[[SlideRecord], object]:
    """What embedding does to pixels: open, read the tiles, which are known, and give them to the model."""
    import torch

    from embedding import build
    from tiling.patches import open_patches
    from tiling.stream import iter_patches

    spec, folder = bench.spec("serial"), RunFolder(out)
    embedder = build(spec.embed.entry(), Path(str(spec.embed.weights)))
    grids = {record.slide_id: open_patches(folder.tiles(record.slide_id)).grid for record in bench.records}

    def work(record: SlideRecord) -> object:
        with open_record(record, spec) as slide, torch.inference_mode():
            batches = iter_patches(slide, grids[record.slide_id], 1, 64 << 20)
            return [embedder(torch.from_numpy(batch.patches)).numpy() for batch in batches]

    return work


def predict_bare(bench: Bench, out: Path) -> tuple[Callable[[Any], object], list[Any]]:
    """The head on bags that are in memory."""
    from jobs.bags import bag_for
    from mil.predict import predict

    model = open_model(str(bench.settings["model"]))
    bags = [bag_for(model, record, RunFolder(out)) for record in bench.records]
    return lambda found: predict(model, found[0]), bags


def train(bench: Bench, out: Path) -> Bench:
    """A head, trained on a few of the slides' embeddings; what it says does not matter here."""
    from jobs.training import train_model

    training = {"folds": 2, "epochs": 2}
    model = train_model(bench.records[:LABELLED], bench.spec("serial", train=training), RunFolder(out), "head")
    del model
    return replace(bench, settings={**bench.settings, "model": str(out / "models" / "head")})


STAGES = {"nothing": nothing_slide, "tile": tile_slide, "embed": embed_slide, "predict": predict_slide}


def overhead(scratch: Path, slides: int, executors: Sequence[str], rounds: int) -> dict[str, Any]:
    """Every stage over all slides with each executor, into folders of their own; and bare, in turns with them."""
    embed = {"backbone": NOTHING, "weights": str(weights_of_nothing(scratch)), "device": "cpu", "compile": "off"}
    bench = Bench(records_of(make_slides(scratch / "slides", slides)), {"embed": embed}, scratch)
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in STAGES}
    for number in range(rounds):
        for executor in executors:
            out = scratch / f"{executor}-{number}"
            mine = bench
            for name, stage in STAGES.items():
                if name == "predict":
                    mine = train(bench, out)
                found[name].setdefault(executor, []).append(run(stage, mine, mine.spec(executor), out))
                print(f"round {number + 1}: {name}, {executor}", file=sys.stderr)
            if executor == executors[0]:
                for name, figures in bare_of_all(mine, out).items():
                    found[name].setdefault("bare", []).append(figures)
            shutil.rmtree(out)
    return {name: {kind: _middle(rounds) for kind, rounds in kinds.items()} for name, kinds in found.items()}


def bare_of_all(bench: Bench, out: Path) -> dict[str, dict[str, float]]:
    return {
        "nothing": {"wall_ms": 0.0, "cpu_ms": 0.0},
        "tile": bare(read_bare(bench), bench.records),
        "embed": bare(embed_bare(bench, out), bench.records),
        "predict": bare(*predict_bare(bench, out)),
    }


def _middle(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: median(one[key] for one in rounds) for key in rounds[0]}


def show_overhead(found: dict[str, Any], executors: Sequence[str]) -> str:
    rows = []
    for name, kinds in found.items():
        base = kinds["bare"]
        for executor in executors:
            mine = kinds[executor]
            beyond = [mine[key] - base[key] for key in ("wall_ms", "cpu_ms")]
            pairs = [(mine[key], base[key]) for key in ("wall_ms", "cpu_ms")]
            rows.append((f"{name}, {executor}", *pairs[0], beyond[0], *pairs[1], beyond[1], mine["start_s"]))
    head = ("ms a slide", "wall, run", "bare", f"beyond (needs {TARGET_MS:g})", "processors, run", "bare", "beyond",
            "start, s")  # fmt: skip
    return table(head, rows)


def scheduler_memory(scratch: Path, slides: int) -> dict[str, float]:
    """Bytes that the scheduling process takes for each shard of a run that does nothing: of Python's objects by
    tracemalloc at their peak, and by the peak of the process's memory, each in a process of its own."""
    found = {}
    for name, work in (("traced", _traced), ("resident", _resident)):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found[name] = pool.submit(work, str(scratch / name), slides).result()
    return {
        "slides": slides,
        "shards": slides * PARTS,
        "traced_bytes": found["traced"][0] / (slides * PARTS),
        "resident_bytes": found["resident"][0] / (slides * PARTS),
        "cpu_ms_per_unit": 1e3 * found["resident"][1].cpu_s / (slides * (PARTS + 2)),
    }


def _traced(out: str, slides: int) -> tuple[float, Took]:
    _schedule(many_records(3), f"{out}-first")  # what is loaded on the way is not of the shards
    records = many_records(slides)
    tracemalloc.start()
    spent = _schedule(records, out)
    return tracemalloc.get_traced_memory()[1], spent


def _resident(out: str, slides: int) -> tuple[float, Took]:
    _schedule(many_records(3), f"{out}-first")
    records = many_records(slides)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent = _schedule(records, out)
    return 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), spent


def _schedule(records: list[SlideRecord], out: str) -> Took:
    spec = RunSpec(jobs=ExecSpec("serial"))
    line = Line(parted_slide, {record.slide_id: record for record in records})
    spent, _ = took(lambda: run_stages([line], spec, RunFolder(Path(out)), [Watcher()]))
    if len(line.receipts) != len(records):
        raise RuntimeError(f"{len(line.receipts)} of {len(records)} slides came through")
    return spent


def many_records(slides: int) -> list[SlideRecord]:
    names = [f"slide-{number:05d}" for number in range(slides)]
    return [SlideRecord(name, Path(f"{name}.svs"), name, name) for name in names]


def show_memory(found: dict[str, float]) -> str:
    head = (f"{found['slides']:,} slides x {PARTS} shards, doing nothing", "a shard", "needs")
    return table(
        head,
        (
            ("memory of the scheduler, Python's objects at their peak, bytes", found["traced_bytes"], TARGET_BYTES),
            ("memory of the scheduler, peak of the process, bytes", found["resident_bytes"], TARGET_BYTES),
            ("processor time of the scheduler, ms a unit (shards, splits, joins)", found["cpu_ms_per_unit"], ""),
        ),
    )


def scaling(scratch: Path, slides: int, side_px: int, pairs: int) -> dict[str, Any]:
    """Tiling with patches kept as JPEG (decode, resample, encode: all processors') by one worker and by two, in turns:
    slides a second after the first tenth. Beside it, in the same turns, two plain processes against one."""
    settings = {"patches": "jpeg", "tile": {"mpp": 0.6, "tile_px": 224, "quality": {"measure": False}}}
    bench = Bench(records_of(make_slides(scratch / f"slides-{side_px}", slides, side_px)), settings, scratch)
    ratios: list[float] = []
    plain: list[float] = []
    for number in range(pairs):
        rates = [_rate(bench, workers, scratch / f"scaling-{number}-{workers}") for workers in (1, 2)]
        ratios.append(rates[1] / rates[0])
        plain.append(_plain_rate(bench, 2) / _plain_rate(bench, 1))
        print(f"pair {number + 1}: {ratios[-1]:.2f} x, plain processes {plain[-1]:.2f} x", file=sys.stderr)
    return {"ratios": ratios, "plain": plain, "ratio": median(ratios), "plain_ratio": median(plain)}


def _rate(bench: Bench, workers: int, out: Path) -> float:
    """Slides a second from when a tenth of them are done: processes have started by then."""
    ends: list[float] = []
    spec = resolve({**bench.settings, "jobs": {"workers": workers, "threads": 1}})
    line = Line(tile_slide, {record.slide_id: record for record in bench.records})
    run_stages([line], spec, RunFolder(out), [Watcher(receipt=lambda receipt: ends.append(time.perf_counter()))])
    shutil.rmtree(out)
    first = max(1, len(ends) // 10)
    return (len(ends) - 1 - first) / (ends[-1] - ends[first])


def _plain_rate(bench: Bench, processes: int) -> float:
    """Slides a second of so many processes that each work through slides of their own with nothing shared."""
    share = bench.records[: len(bench.records) // 4]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        outs = [bench.scratch / f"plain-{number}" for number in range(processes)]
        list(pool.map(_tile_all, [share[:1]] * processes, outs, [bench.settings] * processes))  # loads what is needed
        spent, _ = took(lambda: list(pool.map(_tile_all, [share] * processes, outs, [bench.settings] * processes)))
    for out in outs:
        shutil.rmtree(out)
    return processes * len(share) / spent.wall_s


def _tile_all(records: Sequence[SlideRecord], out: Path, settings: dict[str, Any]) -> None:
    spec = resolve({**settings, "jobs": {"executor": "serial", "threads": 1}})
    shutil.rmtree(out, ignore_errors=True)
    for record in records:
        tile_slide(record, spec, RunFolder(out))


def measure(scratch: Path, slides: int, side_px: int) -> dict[str, tuple[float, float]]:
    """What simulations need: seconds of one processor for a tile stage of about 2,900 tiles, for a shard of about
    1,024 with the default backbone, and for the join, by their receipts; with the spread of their logarithms."""
    from jobs.receipts import read_receipts

    settings = {"tile": {"stride_px": 112, "tissue": {"method": "none"}}, "embed": {"device": "cpu"}}
    bench = Bench(records_of(make_slides(scratch / "slides", slides, side_px)), settings, scratch)
    out = scratch / "run"
    spec = bench.spec("serial")
    for stage in (tile_slide, embed_slide):
        run(stage, bench, spec, out)
    tiled = [one.seconds for one in read_receipts(RunFolder(out).receipts("tile"))]
    receipts = read_receipts(RunFolder(out).receipts("embed"), parts=True)
    parts = [one for one in receipts if one.part is not None]
    most = max(one.tiles for one in parts)
    # a slide's receipt says the seconds of all its parts, too
    joins = [whole.seconds - sum(one.seconds for one in parts if one.slide_id == whole.slide_id)
             for whole in receipts if whole.part is None]  # fmt: skip
    shards = [one.seconds for one in parts if one.tiles == most]
    return {"tile": spread_of(tiled), "shard": spread_of(shards), "join": spread_of(joins)}
