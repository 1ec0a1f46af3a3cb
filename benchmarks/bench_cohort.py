"""Planted cohorts of real tissue: every head on the same folds, judged by slide and by tile against what was planted.

    python benchmarks/bench_cohort.py [--work FOLDER] [--tool FILE] [--data FOLDER] [--heads abmil,mean] [--look 2]

Fields of prostate (MoNuSeg, Kumar et al., IEEE TMI 2017) are laid out as slides by a generator that lies outside this
repository; positive slides hold islands of kidney. Whatever is finished stays in --work and is not done again.

Parts. The patients of each organ (a field each) are dealt into four parts, and a slide is made of the fields of one
part only: of two patients' prostate, and of two or three patients' kidney. By default parts are the folds, the
validation parts and what the manifest calls a patient: no source patient is in two of them. With --folds slide every
slide passes for a patient: all tissue of a tested slide was trained on, in another arrangement. That is a leak made on
purpose, to see what a division by slide would claim. Intervals are over slides, and say nothing of other patients.
Seams. A negative slide has islands of the same size as well, of its own prostate: seams and borders say nothing.
Stain. The generator pulls the optical density of both organs to one target for each slide, 70 % of the way.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from jobs.bags import bag_for
from jobs.folder import RunFolder
from jobs.heatmap_stage import explained
from jobs.manifest import SlideRecord, read_manifest
from jobs.model_stages import open_model
from jobs.prediction_table import read_predictions
from mil.bag import Bag
from mil.evaluation.discrimination import auroc, auroc_interval
from mil.evaluation.localisation import tile_auroc
from mil.explain import METHODS
from mil.heads import HEADS
from mil.predict import predict
from tiling.patches import open_patches
from wsi.publish import fingerprint, write_json
from wsi.synthetic.truth import TISSUE, TUMOUR, Truth, tile_truth

REPOSITORY = Path(__file__).resolve().parent.parent
CLASSES = ("plain", "planted")
say = partial(print, file=sys.stderr, flush=True)
CELL_PX = 64  # level-0 pixels of one pixel of the generator's label map


@dataclass(frozen=True, slots=True)
class Plan:
    """What a cohort is made of; its fingerprint names the folder of its slides.

    size_px   side of a slide at level 0, 0.25 µm/px
    share     of the tissue's area that the islands cover
    per_part  slides of each part, every second one positive
    """

    normal: str = "prostate"
    planted: str = "kidney"
    size_px: int = 5120
    share: float = 0.08
    foci: int = 2
    glass: float = 0.4
    stain: float = 0.7
    parts: int = 4
    per_part: int = 12


@dataclass(frozen=True, slots=True)
class Planted:
    """One slide: where it lies, the fields it is made of, and whether its islands are of the other organ."""

    path: Path
    part: str
    normal: tuple[Path, ...]
    islands: tuple[Path, ...]
    positive: bool
    seed: int

    @property
    def slide_id(self) -> str:
        return self.path.stem

    @property
    def truth(self) -> Truth:
        """What is planted where; the islands of a negative slide are tissue like the rest."""
        with Image.open(self.path.with_suffix(".labels.png")) as image:
            labels = np.array(image)
        if not self.positive:
            labels[labels == TUMOUR] = TISSUE
        return Truth(labels, CELL_PX)


def fields_of(data: Path, organ: str) -> list[Path]:
    """An organ's fields, sorted by patient; each is of another one."""
    with (data / "tiles" / "monuseg" / "index.csv").open(newline="") as stream:
        rows = sorted((row["tcga"], row["image"]) for row in csv.DictReader(stream) if row["organ"] == organ)
    if len({patient for patient, _ in rows}) != len(rows):
        raise SystemExit(f"{organ}: a patient has several fields, and parts are dealt by field")
    return [data / "tiles" / "monuseg" / "images" / image for _, image in rows]


def plan_slides(plan: Plan, data: Path, folder: Path) -> list[Planted]:
    """The slides, part by part."""
    slides = []
    for part in range(plan.parts):
        normal, planted = (tuple(fields_of(data, organ)[part :: plan.parts]) for organ in (plan.normal, plan.planted))
        for k in range(plan.per_part):
            path, positive = folder / f"part-{part}-{k:02}.tif", bool(k % 2)
            fields = planted if positive else normal
            slides.append(Planted(path, f"part-{part}", normal, fields, positive, plan.per_part * part + k))
    return slides


def write_slides(slides: Sequence[Planted], plan: Plan, options: argparse.Namespace) -> None:
    """Run the generator for every slide that lacks its .json, which comes last, `options.workers` at a time."""
    environment = {**os.environ, "WSI_DATA": str(options.data.resolve())}

    def write(slide: Planted) -> None:
        with tempfile.TemporaryDirectory() as sources:
            for name, pictures in (("normal", slide.normal), ("islands", slide.islands)):
                (Path(sources) / name).mkdir()
                for picture in pictures:
                    (Path(sources) / name / picture.name).symlink_to(picture)
            words = {"--normal": f"dir:{sources}/normal", "--tumour": f"dir:{sources}/islands", "--foci": plan.foci}
            words |= {"--tumour-frac": plan.share, "--glass": plan.glass, "--stain": plan.stain, "--seed": slide.seed}
            command = [sys.executable, options.tool, slide.path, "--size", plan.size_px, plan.size_px]
            command += [word for setting in words.items() for word in setting]
            done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
        say(f"written {slide.slide_id}" if not done.returncode else done.stderr)
        done.check_returncode()

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(write, [slide for slide in slides if not slide.path.with_suffix(".json").is_file()]))


def fold_of(slide: Planted, by: str) -> int:
    """The part, or a third of each part's slides, positive and negative alike."""
    number = int(slide.slide_id.rpartition("-")[2])
    return int(slide.part.rpartition("-")[2]) if by == "part" else number // 2 % 3


def named(head: str, by: str) -> str:
    return head + ("" if by == "part" else "-by-slide")


def walk(slides: Sequence[Planted], folder: Path, heads: Sequence[str], options: argparse.Namespace) -> RunFolder:
    """Take the slides through the package's commands, as a user would."""
    by, run = options.folds, RunFolder(folder / "run")
    manifest, splits = (folder / f"{what}-by-{by}.csv" for what in ("manifest", "splits"))
    rows = [[s.slide_id, s.path, s.part if by == "part" else s.slide_id, CLASSES[s.positive]] for s in slides]
    write_table(manifest, ["slide_id", "path", "patient_id", "label"], rows)
    write_table(splits, ["slide_id", "fold"], [[slide.slide_id, fold_of(slide, by)] for slide in slides])
    wsi("tile", manifest, "--out", run.root, "--patches", "raw")
    wsi("embed", manifest, "--out", run.root)

    def teach(head: str) -> None:
        chosen = ["--head", head, "--splits", splits, "--classes", ",".join(CLASSES), "--device", "cpu"]
        name = named(head, by)
        if not run.model(name).is_dir():
            wsi("train", manifest, "--out", run.root, "--name", name, *chosen)
        if not run.predictions(name).is_file():
            wsi("predict", manifest, "--out", run.root, "--model", run.model(name), "--executor", "serial")

    teach(heads[0])  # it lays out the cohort's vectors, which the others then share
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(teach, heads[1:]))
    return run


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def wsi(*words: object) -> None:
    """One command of the package, shown and run; its failure ends the benchmark."""
    say("wsi " + " ".join(map(str, words)))
    subprocess.run([Path(sys.executable).with_name("wsi"), *map(str, words)], check=True, stdout=sys.stderr)


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """One slide's readable tiles: features (n, d), which of them the truth decides (n,), and of those, which are at
    least half planted (m,); colours (n, 64) is `histogram` of each."""

    features: NDArray[np.float32]
    clear: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    colours: NDArray[np.float32]


def tiles_of(slide: Planted, bag: Bag, ok: NDArray[np.bool_], run: RunFolder) -> Tiles:
    share = tile_truth(slide.truth, bag.xy, bag.span_px)
    clear = (share >= 0.5) | (share == 0)
    pixels = open_patches(run.tiles(slide.slide_id)).read_at(np.flatnonzero(ok))
    return Tiles(np.asarray(bag.features, np.float32), clear, share[clear] >= 0.5, histogram(pixels))


def histogram(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Shares of 4 x 4 x 4 colours in each patch (n, t, t, 3): (n, 64), rows sum to 1."""
    colour = (pixels.astype(np.int64) // 64) @ np.array([16, 4, 1])
    counts = [np.bincount(patch.ravel(), minlength=64) for patch in colour]
    return (np.array(counts, np.float32) / colour[0].size).reshape(-1, 64)


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """All slides with their tiles, in the manifest's order."""

    slides: Sequence[Planted]
    records: Sequence[SlideRecord]
    tiles: Sequence[Tiles]
    run: RunFolder
    by: str

    @property
    def ids(self) -> list[str]:
        return [slide.slide_id for slide in self.slides]

    @property
    def positive(self) -> NDArray[np.bool_]:
        return np.array([slide.positive for slide in self.slides])

    def kept(self, name: str) -> Path:
        return self.run.root.parent / "figures" / name


def judge_head(cohort: Cohort, head: str) -> dict[str, Any]:
    """Figures of one head, out of fold; taken from its file where that is of this very model."""
    model = open_model(cohort.run.model(named(head, cohort.by)))
    kept = cohort.kept(f"{model.name}.json")
    result: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    if result.get("mark") == model.mark:
        return result
    rows = read_predictions(cohort.run, model)
    said = np.array([float(rows[name][f"softmax_{CLASSES[1]}"]) for name in cohort.ids])
    result = {"name": head, "mark": model.mark}
    tables = {kind: model.metrics[kind]["calibration"]["figures"] for kind in ("raw", "calibrated")}
    result["calibration"] = {kind: {row["name"]: row for row in table} for kind, table in tables.items()}
    result |= slide_figures(cohort, said)
    bags = [bag_for(model, record, cohort.run)[0] for record in cohort.records]
    for method in METHODS:
        if method == "attention" and predict(model, bags[0]).attention is None:
            result[method] = None
            continue
        wanted = [i for i, slide in enumerate(cohort.slides) if slide.positive or method == "instance"]
        scores = [explained(model, bags[i], method, 1)[cohort.tiles[i].clear] for i in wanted]
        result |= tile_figures(method, scores, cohort, wanted)
    write_json(kept, result)
    return result


def slide_figures(cohort: Cohort, said: NDArray[np.floating]) -> dict[str, Any]:
    """Slide AUROC of (n,) scores: `slide` with its interval over slides, `folds` of each fold by itself."""
    every = asdict(auroc_interval(cohort.positive, said, cohort.ids))
    return {"slide": every, "folds": [auroc(cohort.positive[test], said[test]) for test in folds(cohort)]}


def tile_figures(
    name: str, scores: Sequence[NDArray[np.floating]], cohort: Cohort, wanted: Sequence[int]
) -> dict[str, Any]:
    """Tile AUROC within slides, averaged over those with planted tiles; `name pooled` over the tiles of all slides."""
    judged = tile_auroc(scores, [cohort.tiles[i].inside for i in wanted], [cohort.ids[i] for i in wanted])
    return {name: asdict(judged.mean), f"{name} pooled": asdict(judged.pooled)}


def colour_figures(cohort: Cohort) -> dict[str, Any]:
    """Logistic regression on the slide's colour histogram, same folds; the same line, laid on each tile's own."""
    slides = np.sqrt([tiles.colours.mean(axis=0) for tiles in cohort.tiles])
    said, scores = np.zeros(len(slides)), [np.zeros(0)] * len(slides)
    for test in folds(cohort):
        fitted = line().fit(slides[~test], cohort.positive[~test])
        said[test] = fitted.decision_function(slides[test])
        for i in np.flatnonzero(test):
            tiles = cohort.tiles[i]
            scores[i] = fitted.decision_function(np.sqrt(tiles.colours[tiles.clear]))
    figures = tile_figures("instance", scores, cohort, range(len(slides)))
    return {"name": "colour histogram", **slide_figures(cohort, said), **figures}


def taught_figures(cohort: Cohort, name: str, vectors: Sequence[NDArray[np.floating]]) -> dict[str, Any]:
    """What vectors allow where every training tile's truth is told: a line; a slide is its five highest tiles."""
    scores = [np.zeros(0)] * len(vectors)
    clear = [vector[tiles.clear] for vector, tiles in zip(vectors, cohort.tiles, strict=True)]
    for test in folds(cohort):
        known = [i for i in range(len(vectors)) if not test[i]]
        fitted = line().fit(
            np.concatenate([clear[i] for i in known]), np.hstack([cohort.tiles[i].inside for i in known])
        )
        for i in np.flatnonzero(test):
            scores[i] = fitted.decision_function(clear[i])
    highest = slide_figures(cohort, np.array([np.sort(score)[-5:].mean() for score in scores]))
    return {"name": name, **highest, **tile_figures("instance", scores, cohort, range(len(vectors)))}


def line() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))


def folds(cohort: Cohort) -> Iterator[NDArray[np.bool_]]:
    """The slides that are tested, (n,), fold by fold."""
    places = np.array([fold_of(slide, cohort.by) for slide in cohort.slides])
    yield from (places == fold for fold in np.unique(places))


def shown(estimate: Mapping[str, Any] | None) -> str:
    """0.91 (0.82 to 0.97), a dash where there is none."""
    if estimate is None or estimate["value"] is None:
        return "–"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} ({estimate['low']:.2f} to {estimate['high']:.2f})"


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Both tables in Markdown."""
    print("| head | slide AUROC | folds | tile, all slides | tile alone | attention | gradient x input | occlusion |")
    print("|" + "---|" * 8)
    columns = ("instance pooled", "instance", "attention", "gradient", "occlusion")
    for row in rows:
        own = f"{np.mean(row['folds']):.2f} ({min(row['folds']):.2f} to {max(row['folds']):.2f})"
        cells = (shown(row.get(column)) for column in columns)
        print(f"| {row['name']} | {shown(row.get('slide'))} | {own} | " + " | ".join(cells) + " |")
    figures = ("ECE", "Brier score", "negative log-likelihood", "calibration slope")
    print("\n| head | " + " | ".join(figures) + " |\n" + "|" + "---|" * (len(figures) + 1))
    for row in rows:
        if "calibration" in row:
            before, after = row["calibration"]["raw"], row["calibration"]["calibrated"]
            cells = (" → ".join(shown(table[name]).split()[0] for table in (before, after)) for name in figures)
            print(f"| {row['name']} | " + " | ".join(cells) + " |")


def look(cohort: Cohort, head: str, count: int) -> None:
    """Heatmaps of some positive slides, as the package draws them, and their truth: figures/truth-*.png."""
    chosen = [slide for slide in cohort.slides if slide.positive][:: len(cohort.slides) // 4][:count]
    manifest, model = cohort.run.root.parent / "look.csv", cohort.run.model(named(head, cohort.by))
    write_table(manifest, ["slide_id", "path"], [[slide.slide_id, slide.path] for slide in chosen])
    for kind in ("prediction", "attention", "gradient") if chosen else ():
        wsi("heatmap", manifest, "--out", cohort.run.root, "--model", model, "--score", kind)
    for s in chosen:
        Image.fromarray(s.truth.labels * 120).save(cohort.kept(f"truth-{s.slide_id}.png"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "slidestream-cohort")
    parser.add_argument("--tool", type=Path, default=REPOSITORY.parent / "shared" / "tools" / "make_big_slide.py")
    default = Path(os.environ.get("WSI_DATA", REPOSITORY.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--heads", help="comma-separated; by default all")
    parser.add_argument("--share", type=float, default=Plan().share, help="of the tissue that is planted")
    parser.add_argument("--folds", choices=("part", "slide"), default="part", help="what is held out together")
    parser.add_argument("--look", type=int, default=2, help="positive slides to draw, at most")
    parser.add_argument("--workers", type=int, default=2, help="slides written, and heads trained, at a time")
    options = parser.parse_args()
    if not options.tool.is_file():
        parser.error(f"{options.tool} is missing: give the generator of slides with --tool")
    if not (options.data / "tiles" / "monuseg" / "index.csv").is_file():
        parser.error(f"{options.data} has no tiles/monuseg: set WSI_DATA, or give --data")
    return options


def main() -> None:
    options = arguments()
    plan = Plan(share=options.share)
    folder = options.work.resolve() / f"cohort-{fingerprint(plan)}"
    for name in ("slides", "figures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    slides = plan_slides(plan, options.data.resolve(), folder / "slides")
    write_slides(slides, plan, options)
    heads = options.heads.split(",") if options.heads else list(HEADS)
    run = walk(slides, folder, heads, options)
    records, model = (
        read_manifest(folder / f"manifest-by-{options.folds}.csv"),
        open_model(run.model(named(heads[0], options.folds))),
    )
    loaded = [bag_for(model, record, run) for record in records]
    tiles = [tiles_of(slide, bag, mine.ok, run) for slide, (bag, mine, _) in zip(slides, loaded, strict=True)]
    cohort = Cohort(slides, records, tiles, run, options.folds)
    rows = [*(judge_head(cohort, head) for head in heads), colour_figures(cohort)]
    rows.append(taught_figures(cohort, "tiles told, colour", [np.sqrt(one.colours) for one in tiles]))
    rows.append(taught_figures(cohort, "tiles told, embeddings", [one.features for one in tiles]))
    print(f"{sum(len(t.clear) for t in tiles):,} tiles, {sum(int(t.inside.sum()) for t in tiles)} positive\n")
    show(rows)
    look(cohort, heads[0], options.look)


if __name__ == "__main__":
    main()
