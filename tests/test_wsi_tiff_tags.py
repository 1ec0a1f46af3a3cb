"""A TIFF tag whose type or number of values contradicts the tag is damage, found before anything is read by it."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.slides import tissue_like
from tests.tiff_slides import TiffOptions, write_tiff
from wsi import Region, open_slide
from wsi.channels import Channels
from wsi.errors import EngineError, SlideError
from wsi.formats.tiff_directory import read_directories
from wsi.source import open_source

IMAGE = tissue_like(500, 400)
SHORT, LONG, RATIONAL, ASCII, FLOAT, SIGNED = 3, 4, 5, 2, 11, 9
BITS, COMPRESSION, OFFSETS, SAMPLES = 258, 259, 324, 277


@pytest.fixture
def rgb(tmp_path: Path) -> Path:
    return write_tiff(tmp_path / "rgb.tif", [IMAGE], TiffOptions("jpeg", 128))


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Two channels of 16 bits."""
    path = tmp_path / "deep.tif"
    values = np.stack([IMAGE[..., 0], IMAGE[..., 1]]).astype(np.uint16) * 200
    tifffile.imwrite(path, values, tile=(128, 128), compression="deflate", photometric="minisblack", planarconfig=2)
    return path


def put_entry(path: Path, tag: int, kind: int, count: int, as_tag: int | None = None) -> None:
    """Make a tag of the first directory claim so many values of that TIFF type, wherever they may lie."""
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[tag].offset
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack("<HHI", as_tag or tag, kind, count))


def open_and_read(path: Path, channels: str | None) -> None:
    with open_slide(path, channels=None if channels is None else Channels.parse(channels)) as slide:
        slide.read(Region(0, 0, 300, 300), 0)
        for name in slide.info.associated:
            slide.associated(name)


CONTRADICTIONS = [
    (BITS, RATIONAL, 1),
    (BITS, SHORT, 0),
    (BITS, SHORT, 70_000),
    (COMPRESSION, ASCII, 1),
    (COMPRESSION, 99, 1),
    (SAMPLES, SHORT, 2),
    (OFFSETS, FLOAT, 12),
    (OFFSETS, LONG, 1 << 25),
]


@pytest.mark.parametrize(("tag", "kind", "count"), CONTRADICTIONS)
@pytest.mark.parametrize(("form", "channels"), [("rgb", None), ("deep", "0=FF0000")])
def test_values_that_a_tag_never_has_are_named(request, form, channels, tag, kind, count):
    path = request.getfixturevalue(form)
    put_entry(path, tag, kind, count)
    said = f"tag {tag} of image 0 claims {count:,} values of TIFF type {kind}, which it never has"
    with pytest.raises(SlideError, match=said):
        open_and_read(path, channels)


def test_a_negative_place_is_damage(rgb):
    put_entry(rgb, OFFSETS, SIGNED, 16)
    with tifffile.TiffFile(rgb) as file:
        at = file.pages[0].tags[OFFSETS].valueoffset
    with rgb.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack("<i", -9))
    with pytest.raises(SlideError, match="tag 324 of image 0 is negative"):
        open_slide(rgb)


def test_a_claimed_length_is_not_read_before_it_is_checked(rgb):
    put_entry(rgb, BITS, SHORT, 50_000_000)
    with rgb.open("r+b") as file:
        file.truncate(200 << 20)  # sparse: the values would lie in the file
    source = open_source(rgb)
    tracemalloc.start()
    with pytest.raises(SlideError, match="claims 50,000,000 values"):
        list(read_directories(source))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    source.close()
    assert peak < 10 << 20


def test_what_can_as_well_be_absent_is_no_reason_to_refuse_a_slide(tmp_path):
    path = tmp_path / "a.tif"
    other = [(40_000, "H", 1, (0,), True)]
    scale = {"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, IMAGE, photometric="rgb", tile=(128, 128), extratags=other, metadata=None, **scale)
    put_entry(path, 40_000, SHORT, 0, as_tag=338)  # ExtraSamples, of which there are none
    put_entry(path, 282, FLOAT, 1)  # XResolution: the other direction's stands for both
    with open_slide(path) as slide:
        assert slide.info.mpp == 0.5
        assert np.array_equal(slide.read(Region(0, 0, 500, 400), 0), IMAGE)


def test_of_a_tag_given_twice_the_first_counts(tmp_path):
    path = tmp_path / "a.tif"  # tifffile adds a description of its own
    tifffile.imwrite(path, IMAGE, photometric="rgb", tile=(128, 128), description="the first", metadata={"a": 1})
    assert path.read_bytes().count(struct.pack("<HH", 270, ASCII)) == 2
    source = open_source(path)
    assert [directory.text(270) for directory in read_directories(source)] == ["the first"]
    source.close()


@pytest.mark.parametrize(("form", "channels"), [("rgb", None), ("deep", "0=FF0000")])
def test_any_wrong_byte_in_a_directory_ends_in_an_error_of_ours_or_none(request, form, channels):
    path = request.getfixturevalue(form)
    sound = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        start, length = file.pages[0].offset, 2 + 12 * len(file.pages[0].tags)
    refused = 0
    for at in range(start, start + length):
        for wrong in {0, 5, 255} - {sound[at]}:
            path.write_bytes(sound[:at] + bytes([wrong]) + sound[at + 1 :])
            try:
                open_and_read(path, channels)
            except EngineError:
                refused += 1
    assert refused > length
