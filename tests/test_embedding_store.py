import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from embedding import BACKBONES, embed_patches, embed_store, make_contract, open_embeddings, write_embeddings
from embedding.contract import contract_name
from embedding.embed import Embedded
from embedding.loader import Embedder
from embedding.spec import EmbedSpec, StainSpec
from tests.slides import ArraySlide, tissue_like
from tiling import PatchRequest, TileSpec, TissueSpec, find_tissue, open_patches, plan_grid, write_patches
from wsi import BackboneError, SlideError, StoreError

SPEC = TileSpec(tile_px=64, max_failed_tiles=0.2, tissue=TissueSpec(method="none"))


class MeanColour(torch.nn.Module):
    """A network whose embedding is the mean of each channel: what comes out says what went in."""

    def forward_features(self, pixels):
        return pixels

    def forward_head(self, features, pre_logits):
        return features.mean(dim=(2, 3))


def embedder(**changes) -> Embedder:
    unit = ((0.0,) * 3, (1.0,) * 3)
    entry = replace(
        BACKBONES["resnet50"], dim=3, norm=unit, tile_px=64, resize_px=64, input_px=64, pooling="pool", **changes
    )
    return Embedder(entry, MeanColour()).eval()


class Broken(ArraySlide):
    def read_many(self, xy, level, out):
        ok = super().read_many(xy, level, out) & (xy[:, 0] >= 64)
        out[~ok] = 255
        return ok


@pytest.mark.parametrize("batch", [1, 7, None])
def test_every_readable_tile_is_embedded_and_no_other(batch):
    slide = Broken([tissue_like(640, 640)])
    grid = plan_grid(slide.levels, SPEC, find_tissue(slide, SPEC.tissue))
    steps = []
    embedded = embed_patches(slide, grid, embedder(), batch=batch, progress=steps.append)
    assert embedded.embeddings.dtype == np.float16
    assert sum(steps) == len(grid) == 100
    assert np.array_equal(embedded.ok, grid.xy[:, 0] >= 64)
    assert not embedded.embeddings[~embedded.ok].any()
    for number in np.flatnonzero(embedded.ok)[::13]:
        x, y = grid.xy[number]
        expected = slide._arrays[0][y : y + 64, x : x + 64].mean(axis=(0, 1)) / 255
        assert embedded.embeddings[number] == pytest.approx(expected, abs=1e-3)


def test_stored_patches_give_the_same_embeddings_as_the_slide(tmp_path):
    slide = Broken([tissue_like(640, 640)])
    tissue = find_tissue(slide, SPEC.tissue)
    grid = plan_grid(slide.levels, SPEC, tissue)
    write_patches(tmp_path / "s.zarr", slide, grid, tissue, PatchRequest("s", "f", pixels="raw"))
    from_slide = embed_patches(slide, grid, embedder())
    from_store = embed_store(open_patches(tmp_path / "s.zarr"), embedder())
    assert np.array_equal(from_slide.embeddings, from_store.embeddings)
    assert np.array_equal(from_slide.ok, from_store.ok)


def test_too_many_unreadable_tiles_fail_the_slide():
    slide = Broken([tissue_like(640, 640)])
    grid = plan_grid(slide.levels, replace(SPEC, max_failed_tiles=0.05), find_tissue(slide, SPEC.tissue))
    with pytest.raises(SlideError, match="10 of 100 tiles"):
        embed_patches(slide, grid, embedder())


@pytest.mark.parametrize(("std", "said"), [
    (1e-9, r"too large for float16 are the embeddings of 9 tiles: 0 at \(0, 0\), 1 at \(64, 0\), .*--dtype float32"),
    (1e-45, r"not finite \(NaN or Inf\) are the embeddings of 9 tiles: 0 at \(0, 0\)"),
])  # fmt: skip
def test_embeddings_that_cannot_be_stored_fail_the_slide_and_name_its_tiles(std, said):
    slide = ArraySlide([tissue_like(200, 200)])
    grid = plan_grid(slide.levels, SPEC, find_tissue(slide, SPEC.tissue))
    huge = Embedder(replace(embedder().backbone, norm=((0.0,) * 3, (std,) * 3)), MeanColour())
    with pytest.raises(BackboneError, match=said):
        embed_patches(slide, grid, huge)


def test_a_contract_changes_with_everything_that_determines_an_embedding():
    entry = BACKBONES["virchow"]
    tile = TileSpec(tile_px=224, mpp=0.5)
    base = make_contract(entry, "aa", tile)
    others = [
        make_contract(entry, "ab", tile),
        *(make_contract(entry, "aa", replace(tile, **change)) for change in (
            {"tile_px": 256}, {"mpp": 1.0}, {"icc": "srgb"}, {"channels": "0=FF0000"}, {"channels": "0=FF0000:0-9"},
        )),
        *(make_contract(replace(entry, **change), "aa", tile) for change in (
            {"pooling": "cls"}, {"resize_px": 256}, {"input_px": 196}, {"norm": ((0.5,) * 3, (0.5,) * 3)},
            {"interpolation": "bilinear"}, {"dim": 1280}, {"options": {}}, {"arch": "vit_large_patch16_224"},
        )),
        make_contract(entry, "aa", tile, EmbedSpec("virchow"), "bf16"),
        *(make_contract(entry, "aa", tile, EmbedSpec("virchow", **change)) for change in (
            {"dtype": "float32"}, {"views": 4}, {"stain": StainSpec("macenko")}, {"stain": StainSpec(jitter=0.1)},
        )),
    ]  # fmt: skip
    same = {"stride_px": 100, "min_tissue": 0.5, "max_tiles": 9, "tissue": TissueSpec(method="hsv")}
    assert make_contract(entry, "aa", replace(tile, **same)) == base  # which tiles, not what they look like
    assert len({contract["hash"] for contract in [base, *others]}) == len(others) + 1 == 20
    assert contract_name(base) == f"virchow-{base['hash'][:8]}"


def test_a_store_reads_back_and_a_damaged_one_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    embedded = Embedded(rng.normal(size=(9, 4)).astype(np.float16), np.arange(9) != 3)
    contract = make_contract(BACKBONES["uni"], "aa", TileSpec())
    xy = np.arange(18).reshape(9, 2)
    facts = {"slide_id": "s", "fingerprint": "f", "identity": "i", "contract": contract, "span_px": 512}
    with write_embeddings(tmp_path / "s.zarr", 9, (4,)) as writer:
        writer.write(embedded.embeddings[:4, None], embedded.ok[:4])
        writer.write(embedded.embeddings[4:, None], embedded.ok[4:])
        writer.finish(xy, facts)
    store = open_embeddings(str(tmp_path / "s.zarr"))
    assert np.array_equal(store.embeddings, embedded.embeddings)
    assert np.array_equal(store.xy, xy)
    assert (store.slide_id, store.span_px, store.contract, store.ok.sum()) == ("s", 512, contract, 8)
    assert store.identity == "i"
    assert store.contract_hash == contract["hash"]
    record = tmp_path / "s.zarr" / "zarr.json"
    content = json.loads(record.read_text())
    content["attributes"]["complete"]["tiles"] = 10
    record.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="9 rows"):
        _ = open_embeddings(tmp_path / "s.zarr").embeddings
    chunk = next(path for path in (tmp_path / "s.zarr" / "embeddings" / "c").rglob("*") if path.is_file())
    chunk.unlink()
    content["attributes"]["complete"]["tiles"] = 9
    record.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="not complete"):
        open_embeddings(tmp_path / "s.zarr")
