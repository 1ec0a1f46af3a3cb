"""Planted cohorts of real tissue: every head on the same folds, judged by slide and by tile against what was planted.

    python benchmarks/bench_cohort.py [--work FOLDER] [--tool FILE] [--data FOLDER] [--heads abmil,mean] [--look 2]

Fields of prostate (MoNuSeg, Kumar et al., IEEE TMI 2017) are laid out as slides by a generator that lies outside this
repository; positive slides hold islands of kidney. Whatever is finished stays in --work and is not done again.

Parts. The patients of each organ (a field each) are dealt into four parts, and a slide is made of the fields of one
part only: of two patients' prostate, and of two or three patients' kidney. Parts are the folds, the validation parts
and what the manifest calls a patient: no source patient is in two of them. Within a part slides share their patients,
and intervals, which are over slides, say nothing of other patients.
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
from jobs.manifest import SlideRecord, read_manifest
from jobs.model_stages import explained, open_model
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
    glass     share of the slide without tissue
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


def walk(slides: Sequence[Planted], folder: Path, heads: Sequence[str], workers: int) -> tuple[Path, RunFolder]:
    """Take the slides through the package's commands, as a user would: (manifest, run folder)."""
    manifest, splits, run = folder / "manifest.csv", folder / "splits.csv", RunFolder(folder / "run")
    rows = [[slide.slide_id, slide.path, slide.part, CLASSES[slide.positive]] for slide in slides]
    write_table(manifest, ["slide_id", "path", "patient_id", "label"], rows)
    parts = enumerate(sorted({slide.part for slide in slides}))
    write_table(splits, ["patient_id", "fold"], [[part, fold] for fold, part in parts])
    wsi("tile", manifest, "--out", run.root, "--patches", "raw")
    wsi("embed", manifest, "--out", run.root)

    def teach(head: str) -> None:
        chosen = ["--head", head, "--splits", splits, "--classes", ",".join(CLASSES), "--device", "cpu"]
        if not run.model(head).is_dir():
            wsi("train", manifest, "--out", run.root, "--name", head, *chosen)
        if not run.predictions(head).is_file():
            wsi("predict", manifest, "--out", run.root, "--model", run.model(head), "--executor", "serial")

    teach(heads[0])  # it lays out the cohort's vectors, which the others then share
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(teach, heads[1:]))
    return manifest, run


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(header)
        table.writerows(rows)


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
    model = open_model(cohort.run.model(head))
    kept = cohort.kept(f"{head}.json")
    if kept.is_file() and json.loads(kept.read_text())["mark"] == model.mark:
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    rows = read_predictions(cohort.run, model)
    said = np.array([float(rows[slide.slide_id][f"softmax_{CLASSES[1]}"]) for slide in cohort.slides])
    result = {"name": head, "mark": model.mark, "calibration": calibration_of(model.metrics)}
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
    """Slide AUROC of (n,) scores: `slide` with its interval over slides, `parts` of each part by itself."""
    own = [auroc(cohort.positive[test], said[test]) for test in folds(cohort)]
    return {"slide": asdict(auroc_interval(cohort.positive, said, cohort.ids)), "parts": own}


def tile_figures(
    name: str, scores: Sequence[NDArray[np.floating]], cohort: Cohort, wanted: Sequence[int]
) -> dict[str, Any]:
    """Tile AUROC within slides, averaged over those with planted tiles; `name pooled` over the tiles of all slides."""
    judged = tile_auroc(scores, [cohort.tiles[i].inside for i in wanted], [cohort.ids[i] for i in wanted])
    return {name: asdict(judged.mean), f"{name} pooled": asdict(judged.pooled)}


def calibration_of(metrics: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """raw and calibrated (each fold by a temperature of the others) → name of a figure → figure."""
    tables = {kind: metrics[kind]["calibration"]["figures"] for kind in ("raw", "calibrated")}
    return {kind: {row["name"]: row for row in table} for kind, table in tables.items()}


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
    """What the vectors allow where the truth of every training tile is told: logistic regression of tiles."""
    scores = [np.zeros(0)] * len(vectors)
    clear = [vector[tiles.clear] for vector, tiles in zip(vectors, cohort.tiles, strict=True)]
    for test in folds(cohort):
        known = [i for i in range(len(vectors)) if not test[i]]
        fitted = line().fit(
            np.concatenate([clear[i] for i in known]), np.hstack([cohort.tiles[i].inside for i in known])
        )
        for i in np.flatnonzero(test):
            scores[i] = fitted.decision_function(clear[i])
    return {"name": name, **tile_figures("instance", scores, cohort, range(len(vectors)))}


def line() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))


def folds(cohort: Cohort) -> Iterator[NDArray[np.bool_]]:
    """The slides that are tested, (n,), part by part."""
    parts = np.array([slide.part for slide in cohort.slides])
    yield from (parts == part for part in np.unique(parts))


def shown(estimate: Mapping[str, Any] | None) -> str:
    """0.91 (0.82 to 0.97), a dash where there is none."""
    if estimate is None or estimate["value"] is None:
        return "–"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} ({estimate['low']:.2f} to {estimate['high']:.2f})"


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Both tables in Markdown."""
    print("| head | slide AUROC | parts | tile, all slides | tile alone | attention | gradient x input | occlusion |")
    print("|" + "---|" * 8)
    columns = ("instance pooled", "instance", "attention", "gradient", "occlusion")
    for row in rows:
        parts = f"{min(row['parts']):.2f} to {max(row['parts']):.2f}" if "parts" in row else "–"
        cells = (shown(row.get(column)) for column in columns)
        print(f"| {row['name']} | {shown(row.get('slide'))} | {parts} | " + " | ".join(cells) + " |")
    figures = ("ECE", "Brier score", "negative log-likelihood", "calibration slope")
    print("\n| head | " + " | ".join(figures) + " |\n" + "|" + "---|" * (len(figures) + 1))
    for row in rows:
        if "calibration" in row:
            before, after = row["calibration"]["raw"], row["calibration"]["calibrated"]
            cells = (" → ".join(shown(table[name]).split()[0] for table in (before, after)) for name in figures)
            print(f"| {row['name']} | " + " | ".join(cells) + " |")


def look(cohort: Cohort, head: str, count: int) -> list[Path]:
    """Truth, prediction, attention and gradient of some positive slides side by side: figures/look-ID.png."""
    chosen = [slide for slide in cohort.slides if slide.positive][:: max(1, len(cohort.slides) // 2 // count)][:count]
    manifest = cohort.run.root.parent / "look.csv"
    write_table(manifest, ["slide_id", "path", "patient_id"], [[s.slide_id, s.path, s.part] for s in chosen])
    kinds = ("prediction", "attention", "gradient")
    for kind in kinds:
        wsi("heatmap", manifest, "--out", cohort.run.root, "--model", cohort.run.model(head), "--score", kind)
    pictures = {slide: cohort.kept(f"look-{slide.slide_id}.png") for slide in chosen}
    for slide, path in pictures.items():
        drawn = [Image.open(cohort.run.overlay(head, slide.slide_id, kind)).convert("RGB") for kind in kinds]
        width, height = drawn[0].size
        page = Image.new("RGB", (width * 4, height), "white")
        truth = Image.fromarray(slide.truth.labels * 120).convert("RGB").resize((width, width))
        for place, picture in enumerate([truth, *drawn]):
            page.paste(picture, (place * width, 0))
        page.save(path)
    return list(pictures.values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "slidestream-cohort")
    parser.add_argument("--tool", type=Path, default=REPOSITORY.parent / "shared" / "tools" / "make_big_slide.py")
    default = Path(os.environ.get("WSI_DATA", REPOSITORY.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--heads", help="comma-separated; by default all")
    parser.add_argument("--share", type=float, default=Plan().share, help="of the tissue that is planted")
    parser.add_argument("--look", type=int, default=2, help="positive slides to draw beside their truth")
    parser.add_argument("--workers", type=int, default=2, help="slides written, and heads trained, at a time")
    options = parser.parse_args()
    if not options.tool.is_file():
        raise SystemExit(f"{options.tool} is missing: give the generator of slides with --tool")
    if not (options.data / "tiles" / "monuseg" / "index.csv").is_file():
        raise SystemExit(f"{options.data} has no tiles/monuseg: set WSI_DATA, or give --data")
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
    manifest, run = walk(slides, folder, heads, options.workers)
    records, model = read_manifest(manifest), open_model(run.model(heads[0]))
    loaded = [bag_for(model, record, run) for record in records]
    tiles = [tiles_of(slide, bag, mine.ok, run) for slide, (bag, mine, _) in zip(slides, loaded, strict=True)]
    cohort = Cohort(slides, records, tiles, run)
    rows = [*(judge_head(cohort, head) for head in heads), colour_figures(cohort)]
    rows.append(taught_figures(cohort, "tiles told, colour", [np.sqrt(one.colours) for one in tiles]))
    rows.append(taught_figures(cohort, "tiles told, embeddings", [one.features for one in tiles]))
    inside, count = sum(int(one.inside.sum()) for one in tiles), sum(len(one.clear) for one in tiles)
    print(f"{len(slides)} slides, {count:,} tiles, {inside} of them at least half planted\n")
    show(rows)
    for picture in look(cohort, "abmil" if "abmil" in heads else heads[0], options.look) if options.look else []:
        say(f"drawn {picture}")


if __name__ == "__main__":
    main()
