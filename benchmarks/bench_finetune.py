"""Frozen backbone against fine-tuned, on real labelled tiles, split by patient or original field and never by tile.

    python benchmarks/bench_finetune.py [--data FOLDER] [--work FOLDER]
    python benchmarks/bench_finetune.py --only lc25000,luadlusc,monuseg --methods last-blocks,lora

The data are looked for in $WSI_DATA, else in ../shared/data beside the checkout; they are read where they lie. Finished
trainings stay in --work, and are not done again. EfficientNet-Lite0 (ImageNet photographs) is the backbone, as its
weights come with a package. With last-blocks alone about seven minutes of one core; LoRA takes several times as much.

monuseg    organ of H&E fields (MoNuSeg 2018, Kumar et al. 2017), 33 TCGA patients of the four organs with eight or more
           of them; four tiles a field; patients in four folds, each tested once by a backbone that was tuned without it
lc25000    normal lung, adenocarcinoma, squamous carcinoma (Borkowski et al. 2019), one tile of each of 740 original
           fields; its classes differ in colour, so it says little
luadlusc   adenocarcinoma or squamous carcinoma of the lung, tiles of two training and two test patients (TCGA): no
           interval over so few patients means anything
"""

import argparse
import csv
import io
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedding import find_backbone, find_weights
from mil.finetune import Base, Cohort, FinetuneSpec, Watcher, finetune, given_split, judge, split_cohort
from mil.finetune.probe import compare, verdict

REPOSITORY = Path(__file__).resolve().parent.parent
MOST_ORGANS = ("breast", "kidney", "lung", "prostate")
FOLDS = 4
LAST = FinetuneSpec(method="last-blocks", blocks=2, epochs=6, patience=3, batch=32, learning_rate=1e-5, folds=FOLDS)
LORA = replace(LAST, method="lora", blocks=5, rank=8, learning_rate=1e-4)
NAMES = {"last-blocks": "last 2 blocks", "lora": "LoRA, last 5 blocks"}


def data_folder(given: Path | None) -> Path:
    folder = given or Path(os.environ.get("WSI_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "tiles").is_dir():
        raise SystemExit(f"{folder} has no folder `tiles`: set WSI_DATA, or give --data")
    return folder / "tiles"


def cohort_of(labels: Sequence[str], groups: Sequence[str], names: Sequence[str], pixels: NDArray[np.uint8]) -> Cohort:
    classes = tuple(sorted(set(labels)))
    truth = np.array([classes.index(label) for label in labels])
    side = pixels.shape[1]
    return Cohort(classes, truth, tuple(groups), tuple(names), lambda rows: pixels[rows], len(pixels), side)


def monuseg(folder: Path) -> Cohort:
    """Four tiles of 500 px at 0.25 µm/px of each 1000 px field; the transform makes 224 px of them, at 0.56 µm/px."""
    labels, groups, names, pixels = [], [], [], []
    with (folder / "monuseg" / "index.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["organ"] in MOST_ORGANS]
    for row in rows:
        field = np.asarray(Image.open(folder / "monuseg" / "images" / row["image"]).convert("RGB"))
        for y, x in ((0, 0), (0, 500), (500, 0), (500, 500)):
            pixels.append(field[y : y + 500, x : x + 500])
            labels.append(row["organ"])
            groups.append(row["tcga"])
            names.append(f"{row['tcga']} {x} {y}")
    return cohort_of(labels, groups, names, np.stack(pixels))


def lc25000(folder: Path) -> Cohort:
    with (folder / "lc25000_lung_subset.csv").open(newline="") as stream:
        every = list(csv.DictReader(stream))
    rows = list({row["group"]: row for row in reversed(every)}.values())
    with ZipFile(folder / "lc25000_lung_subset.zip") as archive:
        pixels = np.stack([decoded(archive.read(row["path"])) for row in rows])
    return cohort_of(*([row[key] for row in rows] for key in ("label", "group", "path")), pixels)


def luadlusc(folder: Path) -> tuple[Cohort, list[str]]:
    """Tiles with their authors' split; the last number in a name is the slide, each of another patient."""
    with ZipFile(folder / "uni_tcga_luadlusc.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        pixels = np.stack([decoded(archive.read(name)) for name in names])
    parts = [name.split("/") for name in names]
    groups = [f"{label}-{Path(name).stem.rpartition('_')[2]}" for _, _, label, name in parts]
    return cohort_of([label for _, _, label, _ in parts], groups, names, pixels), [part for _, part, _, _ in parts]


def decoded(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def outputs_of(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Model → name of a test item → its softmax, as the training wrote them."""
    found: dict[str, dict[str, list[float]]] = {}
    with (folder / "test.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            said = [float(value) for key, value in row.items() if key.startswith("softmax_")]
            found.setdefault(row["model"], {})[row["name"]] = said
    return found


def show(title: str, cohort: Cohort, folders: dict[str, list[Path]], seconds: float) -> None:
    """The pooled test items of all folds, one row a model."""
    first = next(iter(folders.values()))
    frozen = {name: said for folder in first for name, said in outputs_of(folder)["probe on frozen embeddings"].items()}
    items = [i for i, name in enumerate(cohort.names) if name in frozen]
    truth, groups = cohort.truth[items], [cohort.groups[i] for i in items]
    print(f"\n{title}: {len(items)} test tiles of {len(set(groups))} groups  [{seconds:.0f} s]")
    print(f"{'':44}{'balanced accuracy':26}{'AUROC':26}gain in AUROC, paired")
    base = np.array([frozen[cohort.names[i]] for i in items])
    row("probe, frozen", base, truth, groups, None)
    for method, places in folders.items():
        for model in ("probe on tuned embeddings", "tuned head"):
            said = {name: out for folder in places for name, out in outputs_of(folder)[model].items()}
            row(f"{method}: {model}", np.array([said[cohort.names[i]] for i in items]), truth, groups, base)


def row(
    name: str,
    outputs: NDArray[np.float64],
    truth: NDArray[np.int64],
    groups: list[str],
    base: NDArray[np.float64] | None,
) -> None:
    figures = judge(name, outputs, truth, groups)
    cells = [f"{e.value:.3f} ({e.low:.3f}, {e.high:.3f})" if e.low is not None else f"{e.value:.3f} (no interval)"
             for e in (figures.balanced_accuracy, figures.auroc)]  # fmt: skip
    gain = "" if base is None else verdict(compare(outputs, base, truth, groups)["auroc"], len(set(groups)))
    print(f"{name:44}{cells[0]:26}{cells[1]:26}{gain}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".cache" / "bench_finetune")
    parser.add_argument("--only", default="monuseg,lc25000,luadlusc")
    parser.add_argument("--methods", default="last-blocks")
    given = parser.parse_args()
    methods = {NAMES[name]: {"last-blocks": LAST, "lora": LORA}[name] for name in given.methods.split(",")}
    tiles, entry = data_folder(given.data), find_backbone("efficientnet-lite0")
    base, wanted = Base(entry, find_weights(entry), given.work), given.only.split(",")

    def trained(cohort: Cohort, parts: NDArray[np.int8], spec: FinetuneSpec, name: str) -> Path:
        out = given.work / name
        facts = finetune(cohort, parts, base, spec, out, Watcher())
        words = f"{facts['epochs']} epochs, best {facts['best_epoch']}, {facts['memory']['trained']:,} trained"
        print(f"  {name}: {words}, peak {facts['peak_bytes'] / 2**30:.1f} GiB", flush=True)
        return out

    if "monuseg" in wanted:
        cohort, started = monuseg(tiles), time.process_time()
        folds = [split_cohort(cohort, FOLDS, 0, fold) for fold in range(FOLDS)]
        folders = {
            name: [trained(cohort, parts, spec, f"monuseg-{spec.method}-{k}") for k, parts in enumerate(folds)]
            for name, spec in methods.items()
        }
        show("MoNuSeg, organ, by patient", cohort, folders, time.process_time() - started)
    if "luadlusc" in wanted:
        (cohort, said), started = luadlusc(tiles), time.process_time()
        parts = given_split(cohort, said, 5, 0)
        folders = {n: [trained(cohort, parts, s, f"luadlusc-{s.method}")] for n, s in methods.items()}
        show("LUAD or LUSC, by patient", cohort, folders, time.process_time() - started)
    if "lc25000" in wanted:
        cohort, started = lc25000(tiles), time.process_time()
        parts = split_cohort(cohort, 5, 0)
        folders = {n: [trained(cohort, parts, replace(s, epochs=3), f"lc25000-{s.method}")] for n, s in methods.items()}
        show("LC25000 lung, by original field", cohort, folders, time.process_time() - started)


if __name__ == "__main__":
    main()
