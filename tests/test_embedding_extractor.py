"""The extractor: what goes in comes out, in order, in bounded memory, whoever else is at work and whatever runs out."""

import gc
import logging
import threading
import tracemalloc
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from embedding import BACKBONES, build, write_embeddings
from embedding.devices import find_devices
from embedding.embed import embed_chunks, stored_patches
from embedding.extractor import Extractor, Plan
from embedding.loader import Embedder
from embedding.precision import choose_precision, measured_cosine
from embedding.tune import compile_pays
from tiling import PatchBatch, TileGrid, TileSpec, open_patches
from wsi import BackboneError, SpecError

PX = 16
UNIT = ((0.0,) * 3, (1.0,) * 3)
ENTRY = replace(
    BACKBONES["resnet50"], dim=3, norm=UNIT, tile_px=PX, resize_px=PX, input_px=PX, pooling="pool", patch_px=None
)
ROWS = 50  # tiles a batch of the reader


class MeanColour(torch.nn.Module):
    """A network whose embedding is the mean of each channel: what comes out says what went in."""

    def __init__(
        self, fits: int = 1_000_000, raised: type[Exception] = torch.OutOfMemoryError, words: str = "CUDA out"
    ):
        super().__init__()
        self.fits, self.raised, self.words, self.sizes = fits, raised, words, []

    def forward_features(self, pixels):
        self.sizes.append(len(pixels))
        if len(pixels) > self.fits:
            raise self.raised(self.words)
        return pixels

    def forward_head(self, features, pre_logits):
        return features.mean(dim=(2, 3))


def grid_of(tiles: int) -> TileGrid:
    xy = np.stack((np.arange(tiles) * PX, np.zeros(tiles, np.int64)), axis=1)
    return TileGrid(TileSpec(tile_px=PX), 0, PX, 0.5, xy, np.ones(tiles, np.float32))


def colours(tiles: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (tiles, 3)).astype(np.uint8)


def patches(tiles: int, seed: int = 0, taken: list[int] | None = None):
    """Patches of one colour each; of every seventh it is not known."""
    for start in range(0, tiles, ROWS):
        part = colours(tiles, seed)[start : start + ROWS] if tiles < 10_000 else colours(ROWS, start)
        pixels = np.broadcast_to(part[:, None, None], (len(part), PX, PX, 3))
        if taken is not None:
            taken.append(len(part))
        yield PatchBatch(start, pixels, (start + np.arange(len(part))) % 7 != 3)


def embed(extractor: Extractor, tiles: int, seed: int = 0, dtype: str = "float32"):
    chunks = list(embed_chunks(patches(tiles, seed), grid_of(tiles), extractor, dtype))
    return np.concatenate([chunk.vectors for chunk in chunks]), np.concatenate([chunk.ok for chunk in chunks])


@pytest.mark.parametrize(
    ("tiles", "batch", "threads"), [(1, 16, 1), (16, 16, 2), (333, 16, 2), (333, 7, 3), (24, 99, 1)]
)
def test_every_row_comes_once_in_order_and_unread_ones_are_zero(tiles, batch, threads):
    with Extractor(Embedder(ENTRY, MeanColour()), Plan(batch, threads)) as extractor:
        vectors, ok = embed(extractor, tiles)
    assert np.array_equal(ok, np.arange(tiles) % 7 != 3)
    assert vectors.shape == (tiles, 1, 3)
    assert np.allclose(vectors[ok, 0], colours(tiles)[ok] / 255, atol=1e-6)
    assert not vectors[~ok].any()


def test_batches_are_full_but_for_the_last_whatever_the_reader_hands_over():
    network = MeanColour()
    with Extractor(Embedder(ENTRY, network), Plan(16)) as extractor:
        _, ok = embed(extractor, 333)
    assert sorted(network.sizes, reverse=True) == [16] * (ok.sum() // 16) + [ok.sum() % 16]


def test_memory_does_not_grow_with_the_slide(tmp_path):
    class Wide(MeanColour):
        def forward_head(self, features, pre_logits):
            return features.mean(dim=(2, 3)).repeat(1, 512)

    def peak(tiles: int) -> int:
        """Bytes that Python and numpy held at most, while the slide went from pixels to its store."""
        taken, done, grid = [], 0, grid_of(tiles)
        with (
            Extractor(Embedder(replace(ENTRY, dim=1536), Wide()), Plan(32, 2)) as extractor,
            write_embeddings(tmp_path / str(tiles), tiles, (1536,)) as writer,
        ):
            tracemalloc.start()
            for chunk in embed_chunks(patches(tiles, taken=taken), grid, extractor):
                writer.write(chunk.vectors, chunk.ok)
                done += len(chunk.ok)
                assert sum(taken) - done <= (extractor.window + 1) * 32 * 7 / 6 + 2 * ROWS
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            writer.finish(grid.xy, {})
        return most

    assert peak(14_000) < peak(3_500) + (1 << 20)  # embeddings of 43 and of 11 MB


def test_the_first_lane_goes_first_and_neighbours_change_nothing():
    order, gate = [], threading.Event()

    class Slow(MeanColour):
        def forward_features(self, pixels):
            gate.wait(10)
            order.append(float(pixels.mean()) > 0.5)
            return pixels

    def flat(grey: int):
        yield PatchBatch(0, np.full((60, PX, PX, 3), grey, np.uint8), np.ones(60, bool))

    found = {}

    def run(name: str, lane, grey: int) -> None:
        found[name] = [vectors for _, vectors in lane.run(flat(grey))]

    with (
        Extractor(Embedder(ENTRY, Slow()), Plan(20)) as extractor,
        extractor.lane(PX) as first,
        extractor.lane(PX) as second,
    ):
        later = threading.Thread(target=run, args=("second", second, 200))
        later.start()
        while not extractor._pool._waiting.qsize() >= 2:
            pass  # the second slide's batches wait; one of them is at work
        sooner = threading.Thread(target=run, args=("first", first, 50))
        sooner.start()
        while not extractor._pool._waiting.qsize() >= 5:
            pass
        gate.set()
        later.join()
        sooner.join()
    assert order == [True, False, False, False, True, True]
    assert np.allclose(np.concatenate(found["first"]), 50 / 255)
    assert np.allclose(np.concatenate(found["second"]), 200 / 255)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (RuntimeError, "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        (RuntimeError, "DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"),
        (MemoryError, ""),
    ],
)
def test_when_memory_runs_out_it_goes_on_with_fewer_patches_and_says_so_once(raised, words, caplog):
    network = MeanColour(5, raised, words)
    with caplog.at_level(logging.WARNING), Extractor(Embedder(ENTRY, network), Plan(32)) as extractor:
        vectors, ok = embed(extractor, 333)
    assert np.allclose(vectors[ok, 0], colours(333)[ok] / 255, atol=1e-6)
    assert [record.getMessage().count("no memory for 32 patches") for record in caplog.records] == [1]
    assert network.sizes[:4] == [32, 16, 8, 4]
    assert max(network.sizes[4:]) == 4


def test_memory_for_not_even_one_patch_and_other_faults_of_a_network_fail_the_slide():
    with (
        Extractor(Embedder(ENTRY, MeanColour(0)), Plan(4)) as extractor,
        pytest.raises(BackboneError, match="not even one patch"),
    ):
        embed(extractor, 20)
    broken = MeanColour(0, RuntimeError, "mat1 and mat2 shapes cannot be multiplied")
    with Extractor(Embedder(ENTRY, broken), Plan(4)) as extractor:
        for _ in range(2):  # the extractor lives on
            with pytest.raises(RuntimeError, match="shapes cannot"):
                embed(extractor, 20)


def test_a_lane_of_a_closed_extractor_fails_and_does_not_wait_for_ever():
    with Extractor(Embedder(ENTRY, MeanColour()), Plan(4)) as extractor:
        chunks = embed_chunks(patches(333), grid_of(333), extractor, "float32")
        next(chunks)
    with pytest.raises(RuntimeError, match="closed"):
        list(chunks)


def test_what_a_device_has_only_begun_is_waited_for_when_a_batch_is_needed_not_before():
    waited, begun = [], []

    class Event:
        """As CUDA's of work that is at its beginning."""

        def query(self):
            return False

        def synchronize(self):
            waited.append(len(begun))

    with Extractor(Embedder(ENTRY, MeanColour()), Plan(20)) as extractor:
        start, compute = extractor._start, extractor._compute

        def started(*arguments):
            begun.append(start(*arguments))
            begun[-1].result()
            return begun[-1]

        extractor._start = started
        extractor._compute = lambda *arguments: (Event(), compute(*arguments)[1])
        embed(extractor, 333)
        batches = len(begun)
        assert waited == [min(batches, extractor.window + number) for number in range(batches)]


def test_a_slide_that_fails_lets_go_of_its_reader_at_once():
    ended = []

    def stream():
        try:
            yield from patches(333)
        finally:
            ended.append(True)

    def fail(extractor: Extractor) -> None:
        given = stream()
        list(embed_chunks(given, grid_of(333), extractor))

    gc.disable()
    try:
        broken = MeanColour(0, RuntimeError, "shapes cannot be multiplied")
        with Extractor(Embedder(ENTRY, broken), Plan(4)) as extractor, pytest.raises(RuntimeError) as caught:
            fail(extractor)
        del caught
        assert ended
    finally:
        gc.enable()


def test_a_stain_transform_gets_each_patch_with_its_place():
    seen = {}

    class Darker(torch.nn.Module):
        def forward(self, pixels, places):
            for place, pixel in zip(places.tolist(), pixels[:, 0, 0, 0].tolist(), strict=True):
                seen[place] = pixel
            return pixels / 2

    with Extractor(Embedder(ENTRY, MeanColour()), Plan(16)) as extractor:
        chunks = list(embed_chunks(patches(100), grid_of(100), extractor, "float32", Darker()))
    vectors, ok = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("vectors", "ok"))
    assert np.allclose(vectors[ok, 0], colours(100)[ok] / 510, atol=1e-6)
    assert seen == {place: colours(100)[place, 0] for place in np.flatnonzero(ok)}


def test_views_of_a_patch_are_embedded_side_by_side():
    pytest.importorskip("embedding.views")

    class Corner(MeanColour):
        def forward_head(self, features, pre_logits):
            return features[:, :, 0, 0]

    pixels = np.arange(2 * PX * PX * 3, dtype=np.uint8).reshape(2, PX, PX, 3)
    batch = PatchBatch(0, pixels, np.ones(2, bool))
    with Extractor(Embedder(ENTRY, Corner()), Plan(2, views=8)) as extractor:
        (chunk,) = embed_chunks([batch], grid_of(2), extractor, "float32")
    corners = {(y, x) for y in (0, PX - 1) for x in (0, PX - 1)}
    assert chunk.vectors.shape == (2, 8, 3)
    assert np.allclose(chunk.vectors[:, 0], pixels[:, 0, 0] / 255)
    for vectors, patch in zip(chunk.vectors, pixels, strict=True):
        found = {tuple(np.round(view * 255).astype(int)) for view in vectors}
        assert found == {tuple(patch[corner].astype(int)) for corner in corners}


def test_several_devices_are_named_with_commas_and_absent_ones_are_refused():
    assert find_devices("cpu,cpu") == ("cpu", "cpu")
    with pytest.raises(SpecError, match="'cuda:99' cannot be used here"):
        find_devices("cpu,cuda:99")


VIT, CONVNET = BACKBONES["uni"], BACKBONES["efficientnet-lite0"]


@pytest.mark.parametrize(
    ("asked", "backbone", "device", "flags", "capability", "expected"),
    [
        ("fp16", VIT, "cpu", (), (0, 0), "fp16"),  # what is asked for is done
        ("fp32", VIT, "cuda", (), (9, 0), "fp32"),
        ("auto", VIT, "cuda:1", (), (8, 0), "bf16"),
        ("auto", VIT, "cuda", (), (7, 5), "fp16"),
        ("auto", VIT, "cpu", ("amx_bf16", "avx512_bf16"), (0, 0), "bf16"),
        ("auto", VIT, "cpu", ("avx512_bf16",), (0, 0), "fp32"),
        ("auto", VIT, "mps", (), (0, 0), "fp32"),
        ("auto", CONVNET, "cpu", ("amx_bf16",), (0, 0), "fp32"),
        ("auto", CONVNET, "cuda", (), (9, 0), "fp32"),
    ],
)
def test_precision_suits_the_chip_and_the_network(monkeypatch, asked, backbone, device, flags, capability, expected):
    monkeypatch.setattr("embedding.precision.cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr("embedding.precision._capability", lambda device: capability)
    assert choose_precision(asked, backbone, device) == expected


def test_half_precision_weights_give_nearly_the_same_embeddings():
    import timm

    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=3, patch_size=8, num_classes=0
    ).eval()
    entry = replace(VIT, dim=96, pooling="cls+mean", tile_px=32, resize_px=32, input_px=32, patch_px=8)
    seen = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    exact = Embedder(entry, network)
    with torch.inference_mode():
        reference = exact(seen)
    for precision in ("bf16", "fp16"):
        half = Embedder(entry, deepcopy(network), precision)
        assert next(half.network.parameters()).dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        assert 0.9999 <= measured_cosine(exact, half, seen) <= 1 + 1e-9
        with torch.inference_mode():
            assert half(seen).dtype == reference.dtype == torch.float32


CAST = {entry.family: entry for entry in reversed(BACKBONES.values()) if entry.patch_px is not None}


@pytest.mark.parametrize("entry", CAST.values(), ids=CAST)
def test_every_family_of_vits_computes_in_halves(entry):
    seen = torch.zeros(2, entry.tile_px, entry.tile_px, 3, dtype=torch.uint8, device="meta")
    found = build(entry, None, "meta", "bf16")(seen)
    assert (found.shape, found.dtype) == ((2, *entry.row_shape), torch.float32)


@pytest.mark.parametrize(
    ("tiles", "tiles_per_s", "expected"),
    [(1_000_000, 500.0, True), (100_000, 500.0, False), (1_000_000, 0.0, False), (0, 500.0, False)],
)
def test_compiling_pays_where_the_run_is_long(tiles, tiles_per_s, expected):
    assert compile_pays(tiles, tiles_per_s) is expected


def test_stored_pixels_are_read_ahead_in_order(tmp_path):
    from tests.slides import ArraySlide, tissue_like
    from tiling import PatchRequest, TissueSpec, find_tissue, plan_grid, write_patches

    slide, spec = ArraySlide([tissue_like(1280, 640)]), TileSpec(tile_px=64, tissue=TissueSpec(method="none"))
    tissue = find_tissue(slide, spec.tissue)
    grid = plan_grid(slide.levels, spec, tissue)
    write_patches(tmp_path / "s.zarr", slide, grid, tissue, PatchRequest("s", "f", pixels="raw"))
    store = open_patches(tmp_path / "s.zarr")
    batches = list(stored_patches(store, threads=2))
    assert [batch.start for batch in batches] == np.cumsum([0, *(len(batch.ok) for batch in batches[:-1])]).tolist()
    assert np.array_equal(np.concatenate([batch.patches for batch in batches]), store.read_patches(0, len(grid)))
