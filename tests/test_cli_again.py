"""What a second look at a run says: what could not be read, what was left out, what is empty, and what is stale."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from jobs.manifest import read_manifest
from jobs.receipts import latest, read_receipts
from tests.commands import GLASS, corners, section, slides, statuses, store, wsi
from tests.slides import write_svs
from wsi import ManifestError

PX = ("--tile-px", 120, "--tile-mpp", 0.5)


def last(run, slide_id, stage="tile"):
    return latest(read_receipts(run / "receipts" / f"{stage}.jsonl"))[slide_id]


def sheet(run):
    return (run / "report" / "tissue.html").read_text()


def mean_colour(run, slide_id, corner, side=120):
    """Of a tile on the slide's picture, which is drawn on its thumbnail: float (3,)."""
    scale = store(run, slide_id).thumbnail.scale
    left, top, right, bottom = (round(edge / scale) for edge in (*corner, corner[0] + side, corner[1] + side))
    with Image.open(run / "tissue" / f"{slide_id}.jpg") as picture:
        return np.asarray(picture)[top + 3 : bottom - 3, left + 3 : right - 3].mean(axis=(0, 1))


def test_unreadable_tiles_are_counted_and_drawn_also_by_the_second_run(tmp_path):
    source, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    with tifffile.TiffFile(source / "a.svs") as file:
        page = file.pages[0]
        across = -(-page.imagewidth // page.tilewidth)
        place = across * (480 // page.tilelength) + 480 // page.tilewidth
        offset, count = page.dataoffsets[place], page.databytecounts[place]
    with (source / "a.svs").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xab" * count)
    allowed = ("--set", "tile.max_failed_tiles=0.9")
    options = ("tile", source, "-o", run, *PX, "--patches", "raw", *allowed)
    wsi(*options)
    unread = ~store(run, "a").array("ok").astype(bool)
    lost = last(run, "a").failed_tiles
    assert lost == unread.sum() > 0
    wsi(*options)
    assert (last(run, "a").status, last(run, "a").failed_tiles) == ("skipped", lost)
    assert f"unreadable {lost}<" in sheet(run)
    colour = mean_colour(run, "a", store(run, "a").grid.xy[unread][0].tolist())
    assert np.ptp(colour) < 25  # grey, where tissue is pink
    wsi("embed", source, "-o", run, *allowed)
    wsi("embed", source, "-o", run, *allowed)
    assert (last(run, "a", "embed").status, last(run, "a", "embed").failed_tiles) == ("skipped", lost)


def test_the_sheet_keeps_the_slides_of_earlier_commands_and_their_failures(tmp_path):
    source, run = slides(tmp_path / "slides", "a", "b"), tmp_path / "run"
    (source / "broken.svs").write_bytes(b"no slide")
    wsi("tile", source, "-o", run, *PX, code=1)
    wsi("tile", source / "b.svs", "-o", run, *PX)
    assert "Tissue and tiles of 3 slides" in sheet(run)
    assert all(f'name">{name}<' in sheet(run) for name in ("a", "b", "broken"))


@pytest.mark.parametrize("harm", ["record", "chunk"])
def test_a_damaged_store_is_made_again(tmp_path, harm):
    source, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    wsi("tile", source, "-o", run, *PX)
    found, path = corners(run, "a"), run / "tiles" / "a.zarr"
    if harm == "record":
        (path / "zarr.json").write_text("{")
    else:
        next(file for file in (path / "xy" / "c").rglob("*") if file.is_file()).unlink()
    wsi("tile", source, "-o", run, *PX)
    assert statuses(run) == {"a": "done"}
    assert corners(run, "a") == found


def test_an_empty_slide_says_why(tmp_path):
    source, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    write_svs(source / "glass.svs", np.full((960, 1200, 3), GLASS, np.uint8))
    for _ in range(2):
        wsi("tile", source, "-o", run, "--tile-px", 900, "--tile-mpp", 0.5, "--min-tissue", 0.9)
        assert last(run, "glass").problem == "no tissue"
        assert last(run, "a").problem == "tissue, but no tile fits (tile size, regions, min_tissue)"
    assert "tissue, but no tile fits" in sheet(run)


def test_a_failure_names_the_file_that_it_is_about_unless_that_is_the_slide(tmp_path):
    source, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    (source / "broken.svs").write_bytes(b"no slide")
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    (drawn / "a.geojson").write_text("{")
    wsi("tile", source, "-o", run, *PX, "--include", drawn, code=1)
    assert str(drawn / "a.geojson") in last(run, "a").problem
    assert "broken.svs" not in last(run, "broken").problem


def test_tiles_left_out_are_drawn_and_the_cap_counts_those_that_stay(tmp_path):
    pixels = section(box=(0, 0, 1200, 960))
    pixels[:480] = pixels[:480] // 12  # too dark
    write_svs(tmp_path / "a.svs", pixels)
    run = tmp_path / "run"
    options = ("tile", tmp_path / "a.svs", "-o", run, *PX, "--tissue", "none", "--no-pen")
    wsi(*options)
    seen = store(run, "a")
    dark = {tuple(corner) for corner in seen.grid.xy[seen.array("flag_dark")].tolist()}
    assert 20 <= len(dark) <= 40
    wsi(*options, "--drop", "dark", "--max-tiles", 30)
    left = store(run, "a")
    assert (len(left.grid), left.grid.found) == (30, 80 - len(dark))
    assert not dark & set(corners(run, "a"))
    assert {tuple(corner) for corner in left.notes["left_out_xy"]["dark"]} == dark
    red, _, blue = mean_colour(run, "a", min(dark))
    assert red > blue + 30  # orange over what is nearly black


def test_exported_patches_of_older_tiles_are_removed(tmp_path):
    source, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    options = ("tile", source, "-o", run, *PX, "--patches", "raw")
    wsi(*options, "--export", "png")
    wsi(*options, "--export", "tar")
    assert sorted(path.name for path in (run / "patches").iterdir()) == ["a", "a.tar"]
    wsi(*options)  # the same tiles: they are still what the files show
    assert sorted(path.name for path in (run / "patches").iterdir()) == ["a", "a.tar"]
    wsi(*options, "--min-tissue", 0.9)
    assert list((run / "patches").iterdir()) == []


def test_a_conversion_leaves_out_what_failed_last_and_refuses_two_kinds_of_tiles_for_clam(tmp_path):
    source, run, out = slides(tmp_path / "slides", "a", "b"), tmp_path / "run", tmp_path / "out"
    wsi("tile", source, "-o", run, *PX)
    (source / "b.svs").write_bytes(b"no slide")
    wsi("tile", source, "-o", run, "--tile-px", 60, "--tile-mpp", 1, code=1)
    text = wsi("convert", run, "--to", "clam", "-o", out)
    assert "left out: b" in text
    assert [path.name for path in (out / "patches").iterdir()] == ["a.h5"]
    slides(source, "c")
    wsi("tile", source / "c.svs", "-o", run, *PX)
    text = wsi("convert", run, "--to", "clam", "-o", out, code=2)
    assert "a has 60 px at 1 µm/px, c has 120 px at 0.5 µm/px" in text
    assert "2 slides" in wsi("convert", run, "--to", "trident", "-o", out)


def test_a_slide_that_the_other_tools_list_knows_as_empty_is_empty_here(tmp_path):
    source, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    write_svs(source / "glass.svs", np.full((960, 1200, 3), GLASS, np.uint8))
    wsi("tile", source, "-o", run, *PX)
    wsi("convert", run, "--to", "clam", "-o", tmp_path / "out")
    options = ("tile", source, "-o", tmp_path / "again", *PX, "--coords", tmp_path / "out")
    wsi(*options)
    assert statuses(tmp_path / "again") == {"a": "done", "glass": "empty"}
    wsi(*options)
    assert statuses(tmp_path / "again") == {"a": "skipped", "glass": "skipped"}


def test_a_known_column_counts_in_any_case_and_one_that_is_nearly_known_is_refused(tmp_path):
    table = tmp_path / "slides.csv"
    table.write_text("Slide_ID,Path,MPP,Tissue,stain\na,a.svs,0.25,none,HE\n")
    (record,) = read_manifest(table)
    assert (record.slide_id, record.mpp, record.tissue, record.extra) == ("a", 0.25, "none", {"stain": "HE"})
    for wrong, meant in (("tisue", "tissue"), ("Labels", "label"), ("patientid", "patient_id")):
        table.write_text(f"slide_id,path,{wrong}\na,a.svs,x\n")
        with pytest.raises(ManifestError, match=f"'{wrong}' is unknown: is '{meant}' meant.; rename it"):
            read_manifest(table)
    table.write_text("slide_id,path,label,label2\na,a.svs,x,y\n")
    assert read_manifest(table)[0].extra == {"label2": "y"}
