"""The deep-zoom pyramid, patches and thumbnails: exact, honest about what cannot be read, and on anybody's slide."""

import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from tests.commands import section, wsi
from tests.slides import ArraySlide, tissue_like, write_svs
from tests.viewer_site import served
from tiling.thumbnail import Thumbnail
from viewer.cache import ByteCache
from viewer.pixels import MOST_PX, draw_patch, draw_region, enlarge, hatched, tile_region
from viewer.place import TILE_PX, max_level
from viewer.readers import Limits
from wsi.errors import TileError
from wsi.geometry import Region


@pytest.mark.parametrize("size", [(1, 1), (512, 512), (513, 512), (1200, 960), (40000, 3)])
def test_the_pyramid_covers_every_pixel_once_and_ends_in_one_pixel(size):
    width, height = size
    assert 1 << max_level(width, height) >= max(width, height) > (1 << max_level(width, height)) // 2
    for level in {0, max_level(width, height) // 2, max_level(width, height)}:
        factor, area = 1 << (max_level(width, height) - level), 0
        cols, rows = -(-width // factor), -(-height // factor)
        for x in range(-(-cols // TILE_PX)):
            for y in range(-(-rows // TILE_PX)):
                region, scale = tile_region(width, height, level, x, y)
                assert scale == factor
                assert (region.x, region.y) == (x * TILE_PX * factor, y * TILE_PX * factor)
                area += (region.width // factor) * (region.height // factor)
        assert area == cols * rows
        assert tile_region(width, height, level, -(-cols // TILE_PX), 0) is None
    assert tile_region(width, height, max_level(width, height) + 1, 0, 0) is None
    assert tile_region(width, height, 0, -1, 0) is None


def no_overview() -> Thumbnail:
    raise AssertionError("the slide has levels enough")


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_tile_is_the_mean_of_what_it_covers(factor):
    image = tissue_like(640, 512)
    slide = ArraySlide([image])
    region = Region(64, 128, 256, 128)
    drawn = draw_region(slide, region, factor, no_overview)
    wanted = image[128:256, 64:320].reshape(128 // factor, factor, 256 // factor, factor, 3).mean((1, 3))
    assert drawn.shape == wanted.shape
    assert np.abs(drawn - wanted).max() <= 1


def test_beyond_the_slide_it_is_white():
    drawn = draw_region(ArraySlide([np.zeros((100, 100, 3), np.uint8)]), Region(64, 64, 64, 64), 2, no_overview)
    assert (drawn[:18, :18] == 0).all()
    assert (drawn[18:] == 255).all()
    assert (drawn[:, 18:] == 255).all()


class Damaged(ArraySlide):
    """Of which the square at (256, 256) to (320, 320) cannot be decoded."""

    def read(self, region, level):
        if region.x < 320 and region.x + region.width > 256 and region.y < 320 and region.y + region.height > 256:
            raise TileError("slide", "damaged", "copy it again")
        return super().read(region, level)


def test_what_cannot_be_decoded_is_hatched_and_costs_nothing_beside_it():
    image = tissue_like(512, 512)
    drawn = draw_region(Damaged([image]), Region(0, 0, 512, 512), 1, no_overview)
    lost = drawn != image
    assert not lost[:256].any()
    assert not lost[320:].any()
    piece = drawn[256:320, 256:320]
    assert (piece[..., 0] == piece[..., 1]).all()
    assert set(np.unique(piece)) == {150, 200}
    # stripes of neighbouring pieces fit
    assert (hatched(64, 128)[:, 64:] == hatched(64, 64, 64)).all()


def test_a_slide_without_coarse_levels_is_shown_from_its_thumbnail_and_not_read_whole():
    class Huge(ArraySlide):
        def read(self, region, level):
            raise AssertionError("asked for too much")

    slide = Huge([np.zeros((8, 8, 3), np.uint8)])
    small = tissue_like(300, 300)
    unread = np.zeros((300, 300), bool)
    unread[:50, :50] = True
    side = 300 * 64
    assert (side * 64) ** 2 > MOST_PX
    region = Region(0, 0, side * 64 // 64 * 64, side * 64 // 64 * 64)
    drawn = draw_region(slide, region, 64 * 64, lambda: Thumbnail(small, 64 * 64, unread))
    assert np.abs(drawn[60:].astype(int) - small[60:]).max() <= 1
    assert set(np.unique(drawn[:49, :49])) == {150, 200}


def test_an_enlarged_thumbnail_lies_where_the_slide_does():
    small = np.zeros((64, 64, 3), np.uint8)
    small[32:, 16:] = 255
    thumbnail = Thumbnail(small, 8, np.zeros((64, 64), bool))
    fine = enlarge(thumbnail, Region(0, 0, 512, 512), 1)  # 512 px: the edge is at 256 down and 128 across
    assert (fine[:250] == 0).all()
    assert (fine[262:, 134:] == 255).all()
    assert (fine[:, :122] == 0).all()
    coarse = enlarge(thumbnail, Region(0, 0, 512, 512), 64)
    assert coarse.shape == (8, 8, 3)
    assert (coarse[4:, 2:] == 255).all()
    assert (coarse[:4] == 0).all()


def test_a_patch_has_the_pixels_of_the_slide():
    image = tissue_like(600, 400)
    assert (draw_patch(ArraySlide([image]), 100, 50, 128, 128) == image[50:178, 100:228]).all()
    assert draw_patch(ArraySlide([image]), 100, 50, 128, 512).shape == (128, 128, 3)  # it has no more
    assert draw_patch(ArraySlide([image]), 0, 0, 300, 128).shape == (128, 128, 3)


def test_the_cache_holds_what_it_may_and_lets_the_longest_unused_go():
    cache = ByteCache(100)
    for name in "abcd":
        cache.put(name, bytes(25))
    assert cache.get("a") is not None
    cache.put("e", bytes(20))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.bytes <= 100
    cache.put("f", bytes(26))  # more than a quarter
    assert cache.get("f") is None
    cache.put("a", bytes(10))
    assert cache.bytes == 10 + 25 + 25 + 20


def decode(content: bytes):
    return simplejpeg.decode_jpeg(content, "RGB").astype(int)


def test_tiles_of_a_real_slide_are_its_pixels(real_slide, tmp_path):
    from wsi import open_slide

    with served(real_slide, tmp_path) as site, open_slide(real_slide) as slide:
        facts = site.client.get("/api/slides/CMU-1-Small-Region").json()
        assert (facts["width"], facts["height"], facts["max_level"]) == (2220, 2967, 12)
        assert facts["pixels"] is None
        address = "/api/slides/CMU-1-Small-Region/tiles/12/1_2.jpg"
        answer = site.client.get(address)
        shown, wanted = decode(answer.content), slide.read(Region(512, 1024, 512, 512), 0)
        assert shown.shape == (512, 512, 3)
        assert np.abs(shown - wanted).mean() < 3
        edge = decode(site.client.get("/api/slides/CMU-1-Small-Region/tiles/12/4_5.jpg").content)
        assert edge.shape == (2967 - 5 * 512, 2220 - 4 * 512, 3)
        assert decode(site.client.get("/api/slides/CMU-1-Small-Region/tiles/0/0_0.jpg").content).shape == (1, 1, 3)
        again = site.client.get(address, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert "private" in answer.headers["cache-control"]
        for wrong in ("13/0_0", "12/5_0", "12/-1_0", "12/99999999999_0", "41/0_0"):
            assert site.client.get(f"/api/slides/CMU-1-Small-Region/tiles/{wrong}.jpg").status_code in (400, 404)


def test_any_format_that_is_read_is_shown(data_dir, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("google_camelyon_jpeg2000.dcm", "stritt_test3-DAPI-2-387.ndpi", "histolab_kidney-48-5.tif"):
        (folder / name).symlink_to(data_dir / "slides" / name)
    with served(folder, tmp_path) as site:
        listed = site.client.get("/api/slides").json()["slides"]
        assert len(listed) == 3
        for card in listed:
            facts = site.client.get(f"/api/slides/{card['id']}").json()
            for level in (facts["max_level"], facts["max_level"] // 2):
                answer = site.client.get(f"/api/slides/{card['id']}/tiles/{level}/0_0.jpg")
                assert decode(answer.content).shape[2] == 3, answer.text
            assert decode(site.client.get(f"/api/slides/{card['id']}/thumbnail.jpg?width=200").content).shape[1] <= 200


def crash_or_hang(kind: str, *words):
    """Stands in the readers' place: what damaged slides make of a process."""
    import os
    import signal

    if words == ("crash",):
        os.kill(os.getpid(), signal.SIGSEGV)
    if words == ("hang",):
        time.sleep(1000)
    if words == ("memory",):
        np.ones(3 << 30, np.uint8)
    return f"{kind} {words}"


def test_a_reader_that_dies_costs_its_own_picture_and_is_replaced(tmp_path):
    import asyncio

    from viewer.readers import Readers

    readers = Readers(2, tmp_path, Limits(memory_mib=1024, deadline_s=6.0), f"{__name__}:crash_or_hang")

    async def ask() -> list:
        words = [("tile", "crash"), ("tile", "hang"), ("tile", "memory"), *(("tile", n) for n in range(20))]
        first = await asyncio.gather(*(readers.ask(*one) for one in words))
        return [*first, await readers.ask("tile", "after")]

    try:
        crash, hang, memory, *good, after = asyncio.run(ask())
    finally:
        readers.close()
    assert (crash.status, hang.status, memory.status) == (502, 503, 502)
    assert "SIGSEGV" in crash.detail
    assert "6 s" in hang.detail
    assert "memory" in memory.detail
    assert good == [f"tile ({n},)" for n in range(20)]
    assert after == "tile ('after',)"


def test_where_no_process_can_be_begun_that_is_said_and_tried_again(tmp_path, monkeypatch):
    import asyncio

    from viewer import readers

    def full(self: object, number: int) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    start = readers.Readers._start
    monkeypatch.setattr(readers.Readers, "_start", full)
    pool = readers.Readers(1, tmp_path, Limits(), f"{__name__}:crash_or_hang")

    async def ask(word: str) -> object:
        return await pool.ask("tile", word)

    try:
        assert asyncio.run(ask("a")).status == 503
        monkeypatch.setattr(readers.Readers, "_start", start)
        assert asyncio.run(ask("b")) == "tile ('b',)"
    finally:
        pool.close()


def test_a_slide_whose_file_is_gone_is_shown_from_the_runs_thumbnail(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    write_svs(folder / "a.svs", section())
    wsi("tile", folder, "--out", tmp_path / "run", "--tile-px", 128)
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    with served(tmp_path / "run", tmp_path) as site:
        facts = site.client.get("/api/slides/a").json()
        assert "not where it was" in facts["pixels"]
        assert str(tmp_path) not in str(facts)
        picture = decode(site.client.get(f"/api/slides/a/tiles/{facts['max_level']}/0_0.jpg").content)
        near = np.abs(picture[100:220, 100:220] - section()[100:220, 100:220])
        assert near.mean() < 5  # glass; the thumbnail is as fine as the slide here
        assert site.client.get("/api/slides/a/grid").status_code == 200
        assert site.client.get("/api/slides/a/thumbnail.jpg").status_code == 200
    with served(tmp_path / "run", tmp_path, slides=str(moved)) as site:
        assert site.client.get("/api/slides/a").json()["pixels"] is None


def test_another_file_at_the_slides_place_is_not_shown_for_it(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    write_svs(folder / "a.svs", section())
    wsi("tile", folder, "--out", tmp_path / "run", "--tile-px", 128)
    write_svs(folder / "a.svs", section(seed=5))
    with served(tmp_path / "run", tmp_path) as site:
        assert "another" in site.client.get("/api/slides/a").json()["pixels"]
        picture = decode(site.client.get("/api/slides/a/tiles/11/1_0.jpg").content)
        assert np.abs(picture[240:480, :400] - section()[240:480, 512:912]).mean() < 12


def test_a_damaged_slide_is_named_and_the_others_are_shown(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    write_svs(folder / "good.svs", section())
    content = Path(folder / "good.svs").read_bytes()
    (folder / "cut.svs").write_bytes(content[: len(content) // 2])
    with served(folder, tmp_path) as site:
        answer = site.client.get("/api/slides/cut")
        assert answer.status_code == 422
        assert str(tmp_path) not in answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert site.client.get("/api/slides/good").status_code == 200
