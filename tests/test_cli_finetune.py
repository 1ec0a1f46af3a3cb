"""wsi finetune, from slides to embeddings that are of a contract of their own."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from embedding.store import open_embeddings
from tests.commands import slides, statuses, wsi

NAMES = [f"s{number}" for number in range(6)]
QUICK = ("--method", "last-blocks", "--blocks", 1, "--epochs", 1, "--batch", 8, "--folds", 3, "--max-tiles", 6,
         "--device", "cpu", "--learning-rate", 5e-5)  # fmt: skip
HALVES = {"tumor": (240, 600), "stroma": (600, 960)}


def manifest(folder, names=NAMES, label=lambda number: "ab"[number % 2], patient=lambda number: f"p{number}", **extra):
    path = folder / "slides.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("slide_id", "path", "patient_id", "label", *extra))
        for number, name in enumerate(names):
            more = [column(number) for column in extra.values()]
            writer.writerow((name, folder / "slides" / f"{name}.svs", patient(number), label(number), *more))
    return path


def draw(folder, name, halves=HALVES):
    """A GeoJSON with a rectangle of each class over its half of the tissue."""
    folder.mkdir(exist_ok=True)
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x, 240], [y, 240], [y, 720], [x, 720], [x, 240]]]},
            "properties": {"objectType": "annotation", "classification": {"name": kind}},
        }
        for kind, (x, y) in halves.items()
    ]
    (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Six slides of six patients, tiled at 0.5 µm/px; three keep their pixels in the store, three do not."""
    folder = tmp_path_factory.mktemp("finetune")
    slides(folder / "slides", *NAMES)
    path = manifest(folder)
    wsi("tile", path, "-o", folder / "run", "--tile-px", 112)
    with_pixels = manifest(folder, NAMES[:3])
    wsi("tile", with_pixels, "-o", folder / "run", "--tile-px", 112, "--patches", "raw")
    manifest(folder)
    for name in NAMES:
        draw(folder / "regions", name)
    return folder


@pytest.fixture(scope="module")
def adapter(cohort):
    out = cohort / "adapter"
    said = wsi("finetune", cohort / "slides.csv", "-o", out, "--labels", "regions", "--run", cohort / "run",
               "--regions", cohort / "regions", *QUICK)  # fmt: skip
    return out, said


def gained(said):
    """Whether an epoch was better on the validation part than the frozen backbone."""
    return "the best so far" in said


def facts_of(folder):
    return json.loads((folder / "adapter.json").read_text())


def test_regions_make_an_adapter_and_the_figures_are_shown_with_a_verdict(cohort, adapter):
    out, said = adapter
    assert "test: 24 tiles of 2 groups (stroma 12, tumor 12)" in said
    assert "1,020,162 of 3,373,570 parameters are trained (30.24%)" in said
    for row in ("probe on frozen embeddings", "probe on tuned embeddings", "tuned head", "gain of the tuned head"):
        assert row in said
    # where no epoch is better than the frozen backbone, tuned and frozen do not differ, and there is no interval
    assert ("nothing can be shown on 2 held-out groups" if gained(said) else "no gain can be shown") in said
    assert sorted(entry.name for entry in out.iterdir()) == [
        "adapter.json", "adapter.safetensors", "head.safetensors", "split.csv", "test.csv", "training.csv",
    ]  # fmt: skip
    assert facts_of(out)["mpp"] == 0.5
    assert not list(cohort.glob(".*pixels*"))  # what was read from slides is gone
    with (out / "split.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["name"].split()[0], row["group"]) for row in rows} == {(n, f"p{i}") for i, n in enumerate(NAMES)}
    for row in rows:  # at least half of a tile lies in its class
        left, right = HALVES[row["label"]]
        x = int(row["name"].split()[1])
        assert min(x + 112, right) - max(x, left) >= 56


def test_embeddings_with_the_adapter_are_of_another_contract_and_are_never_mixed_with_the_others(cohort, adapter):
    run, out = cohort / "run", adapter[0]
    wsi("embed", cohort / "slides.csv", "-o", run)
    wsi("embed", cohort / "slides.csv", "-o", run, "--adapter", out)
    stores = sorted(run.glob("embeddings/*/s3.zarr"))
    assert len(stores) == 2
    first, second = (open_embeddings(path) for path in stores)
    tuned, plain = (first, second) if "adapter" in first.contract else (second, first)
    assert "adapter" not in plain.contract
    assert len(str(tuned.contract["adapter"])) == 64
    assert {key for key in tuned.contract if tuned.contract[key] != plain.contract.get(key)} == {"adapter", "hash"}
    differ = np.abs(tuned.embeddings.astype(float) - plain.embeddings).max()
    assert (differ > 1e-3) == gained(adapter[1])
    assert "adapter" in wsi("info", run)


def test_a_second_time_there_is_nothing_to_do(cohort, adapter):
    run, out = cohort / "run", adapter[0]
    changed = (out / "adapter.json").stat().st_mtime_ns
    wsi("finetune", cohort / "slides.csv", "-o", out, "--labels", "regions", "--run", run, "--regions",
        cohort / "regions", *QUICK)  # fmt: skip
    assert (out / "adapter.json").stat().st_mtime_ns == changed
    wsi("embed", cohort / "slides.csv", "-o", run, "--adapter", out)
    wsi("embed", cohort / "slides.csv", "-o", run, "--adapter", out)
    assert set(statuses(run, "embed").values()) == {"skipped"}


def test_slide_labels_train_through_a_bag_of_tiles(cohort, tmp_path):
    said = wsi("finetune", cohort / "slides.csv", "-o", tmp_path / "out", "--labels", "slides", "--run", cohort / "run",
               *QUICK[:6], "--tiles", 4, "--batch", 2, "--folds", 3, "--max-tiles", 6, "--pick", "top")  # fmt: skip
    assert "train: 2 slides of 2 groups (a 1, b 1)" in said
    assert "attention head on frozen embeddings" in said
    assert facts_of(tmp_path / "out")["settings"]["pick"] == "top"


def tiles(folder, count=24, split=None):
    """Pictures of 64 px in two classes, three patients of each, and their table."""
    (folder / "pictures").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        group = number % 6
        pixels = rng.integers(150, 250, (64, 64, 3), dtype=np.uint8)
        pixels[:: 4 if group % 2 else 64] = 60
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
        rows.append((f"{number}.png", "ab"[group % 2], f"p{group}", *((split(number),) if split else ())))
    with (folder / "tiles.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "group", *(("split",) if split else ())))
        writer.writerows(rows)
    return folder / "tiles.csv"


def test_a_table_of_pictures_is_planned_without_doing_anything(tmp_path):
    table = tiles(tmp_path)
    said = wsi("finetune", table, "-o", tmp_path / "out", "--images", tmp_path / "pictures", *QUICK, "--dry-run")
    assert "test: 8 tiles of 2 groups (a 4, b 4)" in said
    assert "a step: weights" in said
    assert "nothing was done" in said
    assert not (tmp_path / "out").exists()


def test_a_table_of_pictures_with_its_own_split_makes_a_lora_adapter(tmp_path):
    table = tiles(tmp_path, split=lambda number: "test" if number % 6 < 2 else "train")
    said = wsi("finetune", table, "-o", tmp_path / "out", "--images", tmp_path / "pictures", "--method", "lora",
               "--blocks", 1, *QUICK[4:], "--precision", "fp32")  # fmt: skip
    assert "tuned head" in said
    assert facts_of(tmp_path / "out")["parts"]["test"] == "8 tiles of 2 groups (a 4, b 4)"
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def edited(table, edit):
    table.write_text(edit(table.read_text()))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda text: text.replace(",b,", ",a,"), "are of one class"),
        (lambda text: text.replace("path,label,group", "path,label,patient"), "column 'group' is missing"),
        (lambda text: text.replace("5.png,b,", "5.png,,"), "label is empty"),
        (lambda text: text.replace("5.png", "4.png", 1), "4.png stands there twice"),
        (lambda text: text.replace("5.png", "99.png", 1), "1 of 24 tiles are not in it, such as 99.png"),
        (
            lambda text: text.replace(",p4", ",p2").replace(",p2", ",p0"),
            "it cannot be in training, validation and test",
        ),
        (lambda text: text.splitlines()[0], "it lists no tiles"),
    ],
    ids=["one class", "no group", "empty label", "twice", "no file", "few groups", "no rows"],
)
def test_a_table_that_cannot_be_learned_from_is_refused_before_any_work(edit, said, tmp_path):
    table = tiles(tmp_path)
    edited(table, edit)
    told = wsi("finetune", table, "-o", tmp_path / "out", "--images", tmp_path / "pictures", *QUICK, code=2)
    assert said in told
    assert not (tmp_path / "out").exists()


def test_a_patient_on_both_sides_of_a_stated_split_is_refused(tmp_path):
    table = tiles(tmp_path, split=lambda number: "test" if number in (0, 1) else "train")
    told = wsi("finetune", table, "-o", tmp_path / "out", "--images", tmp_path / "pictures", *QUICK, code=2)
    assert "its group 'p0' is in train and in test" in told


def test_damaged_pictures_and_those_of_another_size_are_named(tmp_path):
    table = tiles(tmp_path)
    picture = tmp_path / "pictures" / "7.png"
    for content, said in ((picture.read_bytes()[:60], "cannot be decoded"), (None, "it has 32 x 32 px")):
        if content is None:
            Image.new("RGB", (32, 32)).save(picture)
        else:
            picture.write_bytes(content)
        told = wsi("finetune", table, "-o", tmp_path / "out", "--images", tmp_path / "pictures", *QUICK, code=2)
        assert "7.png" in told
        assert said in told


def test_slides_need_tiles_regions_and_labels(cohort, tmp_path):
    source, run = cohort / "slides.csv", cohort / "run"
    ask = ("finetune", source, "-o", tmp_path / "out")
    assert "needs the slides' tiles" in wsi(*ask, "--labels", "slides", code=2)
    assert "it goes with --labels regions" in wsi(*ask, "--labels", "regions", "--run", run, code=2)
    assert "is no table" in wsi("finetune", cohort / "slides", "-o", tmp_path / "out", code=2)
    nothing = wsi(*ask, "--labels", "regions", "--run", run, "--regions", cohort / "regions", "--class", "cat", code=2)
    assert "no slide has tiles that could be learned from" in nothing
    both = wsi(*ask, "--labels", "slides", "--run", run, "--adapter", tmp_path, code=2)
    assert "No such option" in both


def test_one_slide_under_two_patients_is_refused(cohort, tmp_path):
    folder = tmp_path / "twice"
    (folder / "slides").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        source = cohort / "slides" / ("s0.svs" if number == 5 else f"{name}.svs")
        (folder / "slides" / f"{name}.svs").write_bytes(source.read_bytes())
    path = manifest(folder)
    wsi("tile", path, "-o", folder / "run", "--tile-px", 112)
    told = wsi("finetune", path, "-o", folder / "out", "--labels", "slides", "--run", folder / "run", *QUICK, code=2)
    assert "it is the same file as s0, but of another patient" in told


def test_an_adapter_that_does_not_fit_ends_embedding_before_any_work(cohort, adapter, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in adapter[0].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    path = copy / "adapter.json"
    path.write_text(path.read_text().replace('"efficientnet-lite0"', '"resnet50"'))
    ask = ("embed", cohort / "slides.csv", "-o", cohort / "run", "--adapter", copy)
    assert "it is an adapter of resnet50, not of efficientnet-lite0" in wsi(*ask, code=2)
    assert "it is no adapter" in wsi(*ask[:-1], tmp_path, code=2)


def test_a_model_of_tuned_embeddings_asks_for_its_adapter_where_it_embeds(cohort, adapter, tmp_path):
    source, run, out = cohort / "slides.csv", cohort / "run", adapter[0]
    wsi("embed", source, "-o", run)
    wsi("embed", source, "-o", run, "--adapter", out)
    wsi("train", source, "-o", run, "-n", "tuned", "--adapter", out, "--folds", 2, "--epochs", 1)
    model = run / "models" / "tuned"
    wsi("predict", source, "-o", run, "--model", model)  # from the embeddings that are there
    assert set(statuses(run, "predict").values()) == {"done"}
    told = wsi("run", source, "-o", tmp_path / "other", "--model", model, code=2)
    assert "name its folder with --adapter" in told
    assert not (tmp_path / "other").exists()
    wsi("run", cohort / "slides" / "s0.svs", "-o", tmp_path / "other", "--model", model, "--adapter", out)
    assert set(statuses(tmp_path / "other", "predict").values()) == {"done"}
