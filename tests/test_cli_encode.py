"""wsi encode: one vector per slide, of the right embeddings, once."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embedding import find_backbone, make_contract, open_embeddings, write_embeddings
from embedding.contract import contract_name
from embedding.slide_encoders import SLIDE_ENCODERS, find_slide_encoder
from embedding.slide_encoders.build import build_encoder
from embedding.slide_store import open_slide_vector
from jobs.features import several_fit
from jobs.folder import RunFolder
from tests.commands import slides, statuses, wsi
from tiling import TileSpec


def embedded(run: Path, backbone: str, tiles: dict[str, int], mpp: float = 0.5, unread: int = 0) -> str:
    """Embeddings as `wsi embed` leaves them: slide_id → number of tiles, of which the first `unread` are not ok."""
    entry = find_backbone(backbone)
    contract = make_contract(entry, "aa", TileSpec(tile_px=entry.tile_px, mpp=mpp))
    name, span = contract_name(contract), entry.tile_px * 2
    for seed, (slide_id, count) in enumerate(tiles.items()):
        generator = np.random.default_rng([seed, count])
        vectors, ok = generator.normal(size=(count, entry.dim)).astype(np.float16), np.arange(count) >= unread
        vectors[~ok] = 0
        facts = {
            "slide_id": slide_id, "fingerprint": f"{slide_id}-{count}", "identity": slide_id, "contract": contract,
            "span_px": span, "mpp": mpp, "mpp_source": "user", "grid_fingerprint": None,
        }  # fmt: skip
        with write_embeddings(run / "embeddings" / name / f"{slide_id}.zarr", count, (entry.dim,)) as writer:
            if count:
                writer.write(vectors[:, None], ok)
            writer.finish(np.column_stack((np.arange(count) * span, np.zeros(count, np.int64))), facts)
    return name


def manifest(folder: Path, *names: str) -> Path:
    path = folder / "slides.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("slide_id", "path"), *((name, f"{name}.svs") for name in names)])
    return path


def table(run: Path, pattern: str) -> dict[str, np.ndarray]:
    (path,) = (run / "slide_embeddings").glob(f"{pattern}.npz")
    return dict(np.load(path))


def test_from_slides_to_one_vector_each(tmp_path):
    source, run = slides(tmp_path / "slides", "a", "b"), tmp_path / "run"
    wsi("tile", source, "-o", run, "--no-qc")
    wsi("embed", source, "-o", run)
    text = wsi("encode", source, "-o", run)
    assert "2 done" in text
    found = table(run, "mean-*")
    assert found["slide_ids"].tolist() == ["a", "b"]
    assert (found["vectors"].shape, found["vectors"].dtype) == ((2, 1280), np.float32)
    for slide_id, vector in zip("ab", found["vectors"], strict=True):
        (path,) = run.glob(f"embeddings/*/{slide_id}.zarr")
        assert vector == pytest.approx(open_embeddings(path).embeddings.astype(np.float64).mean(0), abs=1e-5)
    contract = json.loads(str(found["contract"]))
    assert (contract["encoder"], contract["tiles"]["backbone"]) == ("mean", "efficientnet-lite0")


def test_tiles_that_were_not_read_take_no_part_and_a_slide_without_tiles_is_empty(tmp_path):
    run = tmp_path / "run"
    source = manifest(tmp_path, "a", "none")
    embedded(run, "resnet50", {"none": 0})
    name = embedded(run, "resnet50", {"a": 5}, unread=2)
    text = wsi("encode", source, "-o", run, "--set", "tile.max_failed_tiles=0.5")
    assert "2 tiles unreadable" in text
    assert statuses(run, "encode") == {"a": "done", "none": "empty"}
    store = open_embeddings(run / "embeddings" / name / "a.zarr")
    found = table(run, "mean-*")
    assert found["slide_ids"].tolist() == ["a"]
    assert found["vectors"][0] == pytest.approx(store.embeddings[2:].astype(np.float64).mean(0), abs=1e-6)
    (empty,) = run.glob("slide_embeddings/*/none.zarr")
    assert open_slide_vector(empty).vector is None
    again = wsi("encode", source, "-o", run, "--set", "tile.max_failed_tiles=0.5")
    assert "2 already there" in again


def test_nothing_is_done_twice_and_only_what_changed_is_done_again(tmp_path):
    run, source = tmp_path / "run", manifest(tmp_path, "a", "b")
    embedded(run, "resnet50", {"a": 3, "b": 4})
    wsi("encode", source, "-o", run)
    first = table(run, "mean-*")
    (kept,) = run.glob("slide_embeddings/*/a.zarr")
    stamp = kept.stat().st_mtime_ns
    embedded(run, "resnet50", {"x": 1, "b": 6})
    (tmp_path / "less").mkdir()
    assert "1 already there" in wsi("encode", manifest(tmp_path / "less", "a"), "-o", run)
    assert table(run, "mean-*")["slide_ids"].tolist() == ["a"]  # b's vector is of embeddings that are no more
    wsi("encode", source, "-o", run)
    assert statuses(run, "encode") == {"a": "skipped", "b": "done"}
    second = table(run, "mean-*")
    assert second["slide_ids"].tolist() == ["a", "b"]
    assert np.array_equal(second["vectors"][0], first["vectors"][0])
    assert not np.array_equal(second["vectors"][1], first["vectors"][1])
    assert kept.stat().st_mtime_ns == stamp


def test_a_damaged_vector_is_made_anew(tmp_path):
    run, source = tmp_path / "run", manifest(tmp_path, "a")
    embedded(run, "resnet50", {"a": 3})
    wsi("encode", source, "-o", run)
    before = table(run, "mean-*")["vectors"]
    next(path for path in run.glob("slide_embeddings/*/a.zarr/vector/c/**/*") if path.is_file()).unlink()
    assert "1 done" in wsi("encode", source, "-o", run)
    assert np.array_equal(table(run, "mean-*")["vectors"], before)


def test_an_encoder_with_weights_gives_what_its_network_gives(tmp_path):
    run, source, entry = tmp_path / "run", manifest(tmp_path, "a"), find_slide_encoder("feather")
    name = embedded(run, "conch-v1.5", {"a": 6})
    torch.manual_seed(0)
    state = build_encoder(entry, None).network.state_dict()
    torch.save({f"model.{key}": value for key, value in state.items()}, tmp_path / "feather.pth")
    arguments = ("encode", source, "-o", run, "--encoder", "feather", "--weights", tmp_path / "feather.pth")
    assert "(1 slides x 512)" in wsi(*arguments)
    store = open_embeddings(run / "embeddings" / name / "a.zarr")
    model = build_encoder(entry, tmp_path / "feather.pth")
    expected = model.encode(store.embeddings, store.xy, store.span_px, store.contract)
    assert np.array_equal(table(run, "feather-*")["vectors"][0], expected)
    torch.save({f"model.{key}": value + 1 for key, value in state.items()}, tmp_path / "feather.pth")
    assert "1 done" in wsi(*arguments)  # other weights are another contract
    assert len(list(run.glob("slide_embeddings/feather-*/a.zarr"))) == 2


def test_the_embeddings_that_fit_are_found_among_others(tmp_path):
    run, source = tmp_path / "run", manifest(tmp_path, "a")
    photographs = embedded(run, "resnet50", {"a": 3})
    other, native = embedded(run, "uni", {"a": 3}, mpp=1.0), embedded(run, "uni", {"a": 3})
    wsi("encode", source, "-o", run, "--backbone", "resnet50")
    assert table(run, "mean-*")["vectors"].shape == (1, 2048)
    text = wsi("encode", source, "-o", run, code=2)
    assert "run/embeddings: 3 of them fit" in text  # no option is blamed that was not given
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("uni-", "resnet50-"))}
    assert rows == {photographs: ["pool", "0.5"], other: ["cls", "1"], native: ["cls", "0.5"]}  # what they differ in
    assert "1 done" in wsi("encode", source, "-o", run, "--features", other)
    text = wsi("encode", source, "-o", run, "--features", "uni", code=2)
    assert all(name in text for name in ("no embeddings called 'uni'", photographs, other, native))


def test_the_embeddings_of_a_run_are_listed_with_their_settings(tmp_path):
    run, source = tmp_path / "run", manifest(tmp_path, "a")
    names = [
        embedded(run, "resnet50", {"a": 3, "b": 2}),
        *(embedded(run, "uni", {"a": 1}, mpp) for mpp in (0.5, 1, 2, 4)),
    ]
    lines = wsi("info", run).splitlines()
    assert max(map(len, lines[1:])) <= 100
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:] if line}
    assert rows.keys() == set(names)
    assert rows[names[0]] == ["pool", "256", "0.5", "fp32", "float16", "1", "–", "2"]
    found = json.loads(wsi("info", run, "--json"))["embeddings"]
    assert {one["name"]: one["slides"] for one in found} == dict(zip(names, (2, 1, 1, 1, 1), strict=True))
    assert found[0]["contract"]["backbone"] == "resnet50"
    text = wsi("encode", source, "-o", run, "--features", "uni", code=2)
    assert f"another of the 5 that `wsi info {run}` lists" in text  # not a line of all names
    (tmp_path / "empty" / "embeddings").mkdir(parents=True)
    assert "wsi embed" in wsi("info", tmp_path / "empty")


def test_embeddings_that_no_usual_setting_tells_apart_are_told_by_the_rest(tmp_path):
    folder = RunFolder(tmp_path)
    contracts = {name: {"backbone": "uni", "dim": dim, "hash": name} for name, dim in (("a", 3), ("b", 4))}
    assert "They differ also in dim." in str(several_fit(contracts, folder, "--contract"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--encoder", "titan"), ("another kind", "≠ backbone", "resnet50", "conch-v1.5", "--tile-px 512")),
        (("--encoder", "mean", "--backbone", "uni"), ("no embeddings of it, but of resnet50",)),
        (("--encoder", "tytan"), ("did you mean titan",)),
        (("--precision", "int8"), ("choose auto, fp32, bf16, fp16",)),
        (("--device", "cuda:7"), ("cannot be used here",)),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(arguments, said, tmp_path):
    run, source = tmp_path / "run", manifest(tmp_path, "a")
    embedded(run, "resnet50", {"a": 3})
    text = wsi("encode", source, "-o", run, *arguments, code=2)
    assert all(words in text for words in said), text
    assert not (run / "slide_embeddings").exists()
    assert not (run / "run.json").exists()


def test_code_that_is_not_trusted_is_refused_before_anything_is_fetched(tmp_path):
    run, source = tmp_path / "run", manifest(tmp_path, "a")
    embedded(run, "conch-v1.5", {"a": 3})
    text = wsi("encode", source, "-o", run, "--encoder", "titan", code=2)
    assert "MahmoodLab/TITAN, revision dac6773" in text
    assert "--trust-remote-code" in text


def test_a_slide_without_embeddings_fails_alone_and_a_dry_run_says_so(tmp_path):
    run, source = tmp_path / "run", manifest(tmp_path, "a", "b")
    name = embedded(run, "resnet50", {"a": 3})
    text = wsi("encode", source, "-o", run, "--dry-run", code=1)
    assert f"1 slides to do from {name}, 1 not ready; nothing was done" in text
    assert not (run / "slide_embeddings").exists()
    assert "wsi embed" in wsi("encode", source, "-o", run, code=1)
    assert statuses(run, "encode") == {"a": "done", "b": "failed"}
    assert table(run, "mean-*")["slide_ids"].tolist() == ["a"]


def test_a_run_without_embeddings_is_refused(tmp_path):
    assert "wsi embed" in wsi("encode", manifest(tmp_path, "a"), "-o", tmp_path / "run", code=2)


def test_tiles_of_another_scale_are_told_and_recorded(tmp_path, monkeypatch):
    run, source = tmp_path / "run", manifest(tmp_path, "a")
    embedded(run, "chief-ctranspath", {"a": 4}, mpp=0.5)
    entry = replace(find_slide_encoder("chief-slide"), sha256=None)  # random weights are not the authors' file
    monkeypatch.setitem(SLIDE_ENCODERS, entry.name, entry)
    torch.save(build_encoder(entry, None).network.state_dict(), tmp_path / "chief.pth")
    text = wsi("encode", source, "-o", run, "--encoder", "chief-slide", "--weights", tmp_path / "chief.pth")
    note = "0.5 µm/px, its authors' have 1"
    assert note in text
    (path,) = run.glob("slide_embeddings/*/a.zarr")
    assert open_slide_vector(path).notes == [note]
