"""A slide behind a URL is read as if it lay here: the same bytes, few requests, plain words when a store fails."""

import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jobs.manifest import read_source
from tests.range_server import range_server
from tests.slides import tissue_like, write_svs
from wsi import open_slide, slide_identity
from wsi.errors import RemoteError, SlideError
from wsi.remote import BLOCK_BYTES, BlockCache, plan_runs
from wsi.source import name_of, open_source, place_of, shown

DATA = np.random.default_rng(0).integers(0, 256, 3_000_001, np.uint8).tobytes()


@pytest.fixture
def server(tmp_path):
    (tmp_path / "a.bin").write_bytes(DATA)
    with range_server(tmp_path) as running:
        yield running


def test_any_range_is_the_same_as_in_the_file(server):
    file = open_source(server.url("a.bin"))
    assert file.size == len(DATA)
    rng = np.random.default_rng(1)
    for offset, count in rng.integers(0, [len(DATA) + 9, 200_000], (60, 2)).tolist():
        assert file.read_at(offset, count) == DATA[offset : offset + count]
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read_at(0, 1)


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, 65_536, 65_537, 65_536 + BLOCK_BYTES])
def test_files_of_every_length_end_where_they_end(server, size):
    (server.root / "b.bin").write_bytes(DATA[:size])
    file = open_source(server.url("b.bin"))
    assert (file.size, file.read_at(0, size + 10), file.read_at(size, 10)) == (size, DATA[:size], b"")


def test_announced_ranges_come_in_few_requests_and_are_then_here(server):
    file = open_source(server.url("a.bin"))
    server.forget()
    ranges = [(500_000 + number * 9_000, 8_000) for number in range(200)]
    file.prefetch(ranges)
    assert all(file.read_at(offset, count) == DATA[offset : offset + count] for offset, count in ranges)
    assert len(server.asked) == 1
    assert server.sent_bytes < 1.15 * 200 * 8_000
    for offset, count in ranges[::-1]:
        file.read_at(offset, count)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([], []),
        ([3], [range(3, 4)]),
        ([0, 1, 2, 9], [range(0, 3), range(9, 10)]),
        ([*range(30), 32, 34], [range(35)]),  # gaps of two blocks beside 32
        ([*range(14), 17, *range(19, 25)], [range(14), range(17, 25)]),  # the smallest gap first
        ([*range(70)], [range(35), range(35, 70)]),
    ],
)
def test_requests_close_small_gaps_and_stay_short(blocks, expected):
    assert plan_runs(np.array(blocks, np.int64), longest=35) == expected


def test_more_than_the_cache_holds_is_fetched_in_turn_and_once():
    fetched = []

    def fetch(start: int, end: int) -> bytes:
        fetched.append(end - start)
        return DATA[start:end]

    cache = BlockCache(fetch, len(DATA), limit_bytes=512 << 10)
    ranges = [(offset, 20_000) for offset in range(0, len(DATA), 20_000)]
    cache.prefetch(ranges)
    assert sum(fetched) <= 256 << 10  # half of what it may hold
    assert b"".join(cache.read(offset, count) for offset, count in ranges) == DATA
    assert sum(fetched) == len(DATA)


def test_threads_that_want_the_same_bytes_share_the_request(server):
    file = open_source(server.url("a.bin"))
    server.forget()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: file.read_at(1_000_000, 50_000), range(8)))
    assert set(answers) == {DATA[1_000_000:1_050_000]}
    assert len(server.asked) == 1


def test_a_file_opened_again_costs_one_request_while_it_is_the_same(server):
    first = open_source(server.url("a.bin"))
    first.read_at(1_000_000, 10)
    first.close()
    server.forget()
    again = open_source(server.url("a.bin"))
    assert again.read_at(1_000_000, 10) == DATA[1_000_000:1_000_010]
    assert len(server.asked) == 1
    server.etag = '"2"'
    (server.root / "a.bin").write_bytes(DATA[::-1])
    assert open_source(server.url("a.bin")).read_at(1_000_000, 10) == DATA[::-1][1_000_000:1_000_010]


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("404", SlideError, "there is no such file"),
        ("403", SlideError, "refused (HTTP 403)"),
        ("401", SlideError, "credentials"),
        ("418", SlideError, "HTTP 418"),
        ("ignore", SlideError, "does not send the range"),
        ("shift", SlideError, "does not send the range"),
        ("cut", SlideError, "does not send the range"),
    ],
)
@pytest.mark.parametrize("when", ["opened", "read"])
def test_a_store_that_fails_is_named_and_no_bytes_are_made_up(server, fault, kind, said, when):
    server.fault = fault if when == "opened" else ""

    def use() -> bytes:
        file = open_source(server.url("a.bin?X-Amz-Signature=secret").replace("//", "//user:secret@"))
        server.fault = fault
        return file.read_at(2_000_000, 100)

    with pytest.raises(kind) as caught:
        use()
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert server.sent_bytes < 3_300_000  # at most one whole file that was not asked for begins to arrive


def test_links_are_followed_and_logins_given(server):
    server.login = "user:pass word"
    url = server.url("moved/a.bin")
    with pytest.raises(SlideError, match="credentials"):
        open_source(url)
    file = open_source(url.replace("//", "//user:pass%20word@"))
    assert file.read_at(2_000_000, 9) == DATA[2_000_000:2_000_009]


def test_a_small_file_may_come_whole(server):
    server.fault = "ignore"
    (server.root / "list.csv").write_text("slide_id,path\nx,b.svs\n")
    for _ in range(2):
        assert read_source(server.url("list.csv"))[0].path == server.url("b.svs")


@pytest.mark.parametrize("fault", ["drop", "503", "429"])
def test_a_passing_fault_of_the_network_is_tried_again(server, fault):
    file = open_source(server.url("a.bin"))
    server.fault, server.faults = fault, 1
    assert file.read_at(2_000_000, 100_000) == DATA[2_000_000:2_100_000]


@pytest.mark.parametrize("fault", ["drop", "500"])
def test_a_lasting_fault_of_the_network_is_not_the_slides(server, fault):
    file = open_source(server.url("a.bin"))
    server.fault = fault
    with pytest.raises(RemoteError, match="the slide may be sound"):
        file.read_at(2_000_000, 100_000)
    server.fault = ""
    assert file.read_at(2_000_000, 100_000) == DATA[2_000_000:2_100_000]


@pytest.mark.parametrize("change", ["etag", "size"])
def test_a_file_that_changes_while_it_is_read_is_an_error(server, change):
    file = open_source(server.url("a.bin"))
    if change == "etag":
        server.etag = '"2"'
    else:
        (server.root / "a.bin").write_bytes(DATA + b"more")
    with pytest.raises(SlideError, match="changed while it was read"):
        file.read_at(2_000_000, 100)


def test_a_server_that_is_not_there_is_a_network_fault():
    with pytest.raises(RemoteError, match="cannot be reached"):
        open_source("http://127.0.0.1:9/a.svs")


def test_an_unknown_kind_of_store_names_what_to_do():
    with pytest.raises(SlideError, match="check the URL"):
        open_source("nonsense://bucket/a.svs")


@pytest.mark.parametrize(
    ("place", "name", "visible"),
    [
        ("s3://bucket/a/b.svs", "b.svs", "s3://bucket/a/b.svs"),
        ("https://u:p@host:80/x/y%20z.svs?X-Amz-Signature=1#f", "y z.svs", "https://host:80/x/y%20z.svs?…"),
        ("https://u:p@ss@host/x.svs", "x.svs", "https://host/x.svs"),
        ("zip://a/b.svs::s3://k/c.zip", "b.svs", "zip://a/b.svs::s3://k/c.zip"),
        ("/a/b@c?.svs", "b@c?.svs", "/a/b@c?.svs"),
    ],
)
def test_a_place_has_a_name_and_no_secrets(place, name, visible):
    assert (name_of(place_of(place)), shown(place_of(place))) == (name, visible)


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_any_store_that_fsspec_knows_will_do(tmp_path, protocol):
    import fsspec

    url = f"{protocol}://{tmp_path}/a.bin"
    with fsspec.open(url, "wb") as file:
        file.write(DATA)
    assert open_source(url).read_at(1_000_000, 5_000) == DATA[1_000_000:1_005_000]
    assert slide_identity(url) == slide_identity(write(tmp_path / "b.bin"))
    with pytest.raises(SlideError, match="there is no such file"):
        open_source(f"{url}.gz")


def write(path):
    path.write_bytes(DATA)
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A pyramid of 4,800 x 2,400 px in tiles of 240 px, behind a web server."""
    folder = tmp_path_factory.mktemp("large")
    write_svs(folder / "large.svs", tissue_like(4800, 2400))
    with range_server(folder) as running:
        yield running


def assert_same_pixels(url, path, xy, side=256):
    """Every level, and the associated images."""
    with open_slide(url) as there, open_slide(path) as here:
        assert there.path == url
        assert [(level.width, level.height) for level in there.levels] == [
            (level.width, level.height) for level in here.levels
        ]
        assert there.info == here.info
        for level in range(len(here.levels)):
            ours, theirs = np.zeros((2, len(xy), side, side, 3), np.uint8)
            assert there.read_many(xy, level, ours).all()
            assert here.read_many(xy, level, theirs).all()
            assert (ours == theirs).all()
        for name in here.info.associated:
            assert (there.associated(name) == here.associated(name)).all()


def test_a_slide_by_its_url_has_the_pixels_of_the_file(large):
    xy = np.random.default_rng(0).integers(-200, [4800, 2400], (60, 2))
    assert_same_pixels(large.url("large.svs"), large.root / "large.svs", xy)


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"])
def test_a_real_slide_by_its_url_has_the_pixels_of_the_file(data_dir, name):
    path = data_dir / "slides" / name
    with range_server(path.parent) as server:
        assert_same_pixels(server.url(name), path, np.random.default_rng(0).integers(-200, 3000, (25, 2)))
        assert slide_identity(server.url(name)) == slide_identity(path)


def test_a_batch_of_patches_costs_a_request_for_many_tiles_and_few_bytes_more(large):
    large.forget()
    with open_slide(large.url("large.svs?anew")) as slide:
        assert len(large.asked) <= 8  # to open it: is it there (thrice), and its directories
        xy = np.stack(np.meshgrid(np.arange(300, 2_300, 128), np.arange(100, 2_100, 128)), axis=-1).reshape(-1, 2)
        large.forget()
        patches = np.empty((len(xy), 256, 256, 3), np.uint8)
        assert slide.read_many(xy, 0, patches).all()
        tiles = [row * 20 + column for row in range(0, 10) for column in range(1, 10)]
        with open_slide(large.root / "large.svs") as here:
            needed = sum(len(here._views[0].stored._stored(tile)) for tile in tiles)
        assert len(large.asked) <= len(tiles) / 8
        assert large.sent_bytes <= 1.3 * needed
        large.forget()
        slide.read_many(xy, 0, patches)
        assert not large.asked


def test_a_store_that_fails_is_not_taken_for_damaged_tiles(large):
    with open_slide(large.url("large.svs?again")) as slide:
        large.fault = "500"
        with pytest.raises(RemoteError):
            slide.read_many(np.array([[4000, 2000]]), 0, np.empty((1, 256, 256, 3), np.uint8))
        large.fault = ""
        assert slide.read_many(np.array([[4000, 2000]]), 0, np.empty((1, 256, 256, 3), np.uint8)).all()


WRONG = [
    ("empty.svs", "the file is empty"),
    ("web.svs", "a web page"),
    ("a.mrxs", "the folder of the same name"),
    ("a.dcm", "copy it to this machine, where more formats are read"),
    ("none.svs", "there is no such file"),
    ("a.ome.zarr", "copy the folder to this machine"),
]


def test_what_is_no_slide_says_so_and_where_more_formats_are_read(server):
    for name, content in (
        ("empty.svs", b""),
        ("web.svs", b"<!doctype html><html>log in</html>"),
        ("a.mrxs", DATA),
        ("a.dcm", DATA),
    ):
        (server.root / name).write_bytes(content)
    for name, problem in WRONG:
        with pytest.raises(SlideError, match=problem):
            open_slide(server.url(name))


@pytest.mark.filterwarnings("ignore:hamamatsu")
def test_a_flavour_that_is_not_read_directly_is_read_in_tiffslides_eyes(data_dir, tmp_path):
    import openslide

    name = "stritt_test3-DAPI-2-387.ndpi"
    with range_server(data_dir / "slides") as server, open_slide(server.url(name)) as slide:
        assert (slide.info.reader, slide.info.vendor, slide.info.codec) == ("tiffslide", "hamamatsu", "jpeg")
        oracle = openslide.OpenSlide(data_dir / "slides" / name)
        xy = np.random.default_rng(0).integers(0, [3400, 4300], (20, 2)) // 8 * 8
        for level, downsample in enumerate((1, 2, 4, 8)):
            patches = np.empty((len(xy), 64, 64, 3), np.uint8)
            assert slide.read_many(xy, level, patches).all()
            theirs = [level_of(oracle, downsample, corner) for corner in xy.tolist()]
            assert (patches == theirs).all()
        assert slide.associated("macro").shape[2] == 3


@pytest.mark.filterwarnings("ignore:hamamatsu")
def test_its_colour_profile_is_there_if_its_record_says_so(data_dir, tmp_path):
    import tifffile

    data = (data_dir / "slides" / "stritt_test3-DAPI-2-387.ndpi").read_bytes()
    with tifffile.TiffFile(data_dir / "slides" / "stritt_test3-DAPI-2-387.ndpi") as file:
        entry = file.pages[0].tags["DateTime"].offset
    # the profile takes the place of the date; its bytes are appended
    put = struct.pack("<HHII", 34675, 7, len(DATA[:500]), len(data))
    (tmp_path / "a.ndpi").write_bytes(data[:entry] + put + data[entry + 12 :] + DATA[:500])
    with range_server(tmp_path) as server, open_slide(server.url("a.ndpi")) as slide:
        assert (slide.info.reader, slide.info.icc_bytes) == ("tiffslide", 500)
        assert slide.icc_profile() == DATA[:500]


def level_of(oracle, downsample, corner):
    level = [round(value) for value in oracle.level_downsamples].index(downsample)
    return np.asarray(oracle.read_region(corner, level, (64, 64)).convert("RGB"))


@pytest.mark.filterwarnings("ignore:hamamatsu")
def test_damaged_tiles_of_such_a_flavour_are_not_ok(data_dir, tmp_path):
    import tifffile

    path = tmp_path / "a.ndpi"
    path.write_bytes((data_dir / "slides" / "stritt_test3-DAPI-2-387.ndpi").read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, count = page.dataoffsets[100], page.databytecounts[100]
    with path.open("r+b") as file:
        file.seek(offset + 20)
        file.write(bytes(count - 20))  # rows 800 to 807
    with range_server(tmp_path) as server, open_slide(server.url(path.name)) as slide:
        rows = np.array([[0, 0], [0, 700], [0, 760], [0, 808]])
        assert slide.read_many(rows, 0, np.empty((4, 64, 64, 3), np.uint8)).tolist() == [True, True, False, True]


def test_records_of_a_command_hide_its_secrets(monkeypatch):
    from jobs.folder import command_line

    monkeypatch.setattr(sys, "argv", ["wsi", "tile", "https://me:word@host/a.svs?token=word", "-o", "run"])
    assert command_line() == "wsi tile https://host/a.svs?… -o run"
