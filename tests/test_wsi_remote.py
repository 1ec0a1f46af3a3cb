"""A slide behind a URL is read as if it lay here: the same bytes, few requests, plain words when a store fails."""

import numpy as np
import pytest

from tests.range_server import range_server
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
    assert server.sent_bytes < 1.2 * 200 * 8_000
    for offset, count in ranges[::-1]:
        file.read_at(offset, count)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([], []),
        ([3], [range(3, 4)]),
        ([0, 1, 2, 9], [range(0, 3), range(9, 10)]),
        ([*range(20), 22, 24], [range(25)]),  # gaps of three blocks in all to 22 wanted
        ([*range(10), *range(12, 20), 25, 29], [range(20), range(25, 26), range(29, 30)]),  # the smallest gap first
        ([*range(70)], [range(32), range(32, 64), range(64, 70)]),
    ],
)
def test_requests_close_small_gaps_and_stay_short(blocks, expected):
    assert plan_runs(np.array(blocks, np.int64), longest=32) == expected


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
    from concurrent.futures import ThreadPoolExecutor

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
