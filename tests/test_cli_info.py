"""wsi info: what it says on a terminal and as JSON."""

import json
import logging

import numpy as np
import pytest
import tifffile

from cli.console import start_logging
from tests.commands import section, slides, wsi
from tests.slides import SvsOptions, write_svs


def large(folder):
    """Three megapixels, so that there is something to measure."""
    return write_svs(folder / "a.svs", section(2048, 1536), SvsOptions(downsamples=(1,)))


def test_measuring_says_how_fast_pixels_came_and_reads_nothing_unasked(tmp_path):
    slide = large(tmp_path)
    assert "speed" not in wsi("info", slide)
    text = wsi("info", slide, "--measure")
    assert "MP/s on one thread" in text
    assert "could not be read" not in text
    speed = json.loads(wsi("info", slide, "--measure", "--json"))["speed"]
    assert 2 < speed["megapixels"] <= 2048 * 1536 / 1e6
    assert speed["per_second"] > 0
    assert speed["per_cpu_second"] > 0
    assert speed["unreadable"] == 0


def test_measuring_counts_patches_that_cannot_be_read(tmp_path):
    slide = large(tmp_path)
    with tifffile.TiffFile(slide) as file:
        page = file.pages[0]
        offset, size = page.dataoffsets[7], page.databytecounts[7]
    with slide.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * size)
    assert json.loads(wsi("info", slide, "--measure", "--json"))["speed"]["unreadable"] == 2
    assert "; 2 patches could not be read" in wsi("info", slide, "--measure")


@pytest.mark.parametrize("size", [(100, 80), (3000, 120)])
def test_a_slide_smaller_than_a_block_is_measured_too(tmp_path, size):
    width, height = size
    slide = write_svs(tmp_path / "a.svs", section(width, height, (0, 0, width, height)), SvsOptions(downsamples=(1,)))
    speed = json.loads(wsi("info", slide, "--measure", "--json"))["speed"]
    assert speed["megapixels"] > 0
    assert np.isfinite(speed["per_second"])


def test_json_holds_every_level_and_one_object_a_slide(tmp_path):
    folder = slides(tmp_path, "a", "b")
    text = wsi("info", folder / "a.svs", folder / "b.svs", "--json")
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text.rstrip()):
        facts, at = decoder.raw_decode(text, at)
        at = len(text) - len(text[at:].lstrip())
        found.append(facts)
    assert [facts["path"] for facts in found] == [str(folder / "a.svs"), str(folder / "b.svs")]
    assert [level["width"] for level in found[0]["levels"] if level["stored"]] == [1200, 600, 300]
    assert found[0]["mpp"] == 0.5


def test_channels_are_shown_chosen_or_asked_for(tmp_path):
    planes = np.random.default_rng(0).integers(0, 4000, (2, 300, 400), dtype=np.uint16)
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Channel": {"Name": ["DAPI", "CD3"]}}
    slide = tmp_path / "a.ome.tif"
    tifffile.imwrite(slide, planes, ome=True, photometric="minisblack", metadata=metadata)
    text = wsi("info", slide, code=2)
    for word in ("DAPI", "CD3", "--channels"):
        assert word in text
    text = wsi("info", slide, "--channels", "CD3=FF0000:0-4000")
    assert "channels     CD3=FF0000:0-4000" in text
    assert "no channel of the file" in wsi("info", slide, "--channels", "CD8=FF0000", code=2)
    assert "no choice of a channel" in wsi("info", slide, "--channels", "red", code=2)


def test_an_unreadable_slide_among_others_costs_only_itself(tmp_path):
    folder = slides(tmp_path, "a")
    (folder / "b.svs").write_bytes(b"hello")
    text = wsi("info", folder / "b.svs", folder / "a.svs", code=1)
    assert "1,200 × 960 px" in text
    assert "error" in text


def test_more_is_logged_of_ours_and_not_of_the_libraries():
    try:
        start_logging(True)
        assert logging.getLogger("jobs.stages").isEnabledFor(logging.DEBUG)
        for library in ("zarr", "numcodecs", "httpx", "PIL.Image"):
            assert not logging.getLogger(library).isEnabledFor(logging.INFO)
    finally:
        start_logging(False)
    assert not logging.getLogger("jobs.stages").isEnabledFor(logging.INFO)


def test_an_empty_name_is_not_the_current_folder():
    assert "no file is named" in wsi("info", "", code=2)
