"""wsi tile: which tiles are found, by what tissue, in what regions, of what quality; and what is redone when."""

import json

import cv2
import numpy as np
import pytest
import shapely

from jobs.manifest import read_manifest
from tests.commands import GLASS, corners, section, slides, statuses, store, wsi
from tests.slides import SvsOptions, write_svs
from wsi import ManifestError

PX = ("--tile-px", 120, "--tile-mpp", 0.5)  # 10 x 8 places on a section


def write_mask(path, box, shape=(96, 120)):
    """A mask image at a tenth of the section's size; box in level-0 pixels."""
    mask = np.zeros(shape, np.uint8)
    left, top, right, bottom = (edge // 10 for edge in box)
    mask[top:bottom, left:right] = 255
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), mask)
    return path


def feature(box, name):
    shape = shapely.geometry.mapping(shapely.box(*box))
    return {"type": "Feature", "geometry": shape, "properties": {"classification": {"name": name}}}


def write_regions(path, *drawn):
    """QuPath GeoJSON of (box, class)."""
    path.parent.mkdir(exist_ok=True)
    features = [feature(*one) for one in drawn]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def write_asap(path, *drawn):
    """ASAP XML of (box, group)."""
    path.parent.mkdir(exist_ok=True)
    entries = []
    for box, group in drawn:
        points = list(shapely.box(*box).exterior.coords)[:-1]
        places = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(points))
        entries.append(
            f'<Annotation Name="a" PartOfGroup="{group}" Type="Polygon">'
            f"<Coordinates>{places}</Coordinates></Annotation>"
        )
    groups = "".join(f'<Group Name="{group}" PartOfGroup="None"><Attributes/></Group>' for _, group in drawn)
    text = f"<ASAP_Annotations><Annotations>{''.join(entries)}</Annotations>"
    path.write_text(f"{text}<AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>")
    return path


def places(left, top, right, bottom):
    """Corners of the 120 px tiles inside a box on the lattice."""
    return {(x, y) for x in range(left, right, 120) for y in range(top, bottom, 120)}


def test_the_manifest_says_slide_by_slide_how_tissue_is_found_and_only_what_changes_is_redone(tmp_path):
    source = slides(tmp_path / "slides", "a", "b", "c", "d")
    write_mask(source / "masks" / "c.png", (0, 0, 480, 240))
    write_regions(source / "d.geojson", ((480, 480, 720, 840), "Tissue"))
    table, run = source / "slides.csv", tmp_path / "run"
    rows = "a,a.svs,\nb,b.svs,{}\nc,c.svs,masks/c.png\nd,d.svs,d.geojson\n"
    table.write_text("slide_id,path,tissue\n" + rows.format("none"))
    assert "4 done" in wsi("tile", table, "-o", run, *PX)
    found = {name: set(corners(run, name)) for name in "abcd"}
    assert places(240, 240, 960, 720) <= found["a"] < places(120, 120, 1080, 840)
    assert found["b"] == places(0, 0, 1200, 960)
    assert found["c"] == places(0, 0, 480, 240)
    assert found["d"] == places(480, 480, 720, 840)
    assert store(run, "c").grid.spec.tissue.method == "mask"

    table.write_text("slide_id,path,tissue\n" + rows.format("otsu"))
    wsi("tile", table, "-o", run, *PX)
    assert statuses(run) == {"a": "skipped", "b": "done", "c": "skipped", "d": "skipped"}
    assert set(corners(run, "b")) < places(0, 0, 1200, 960)
    write_mask(source / "masks" / "c.png", (0, 0, 240, 240))  # the same name, another content
    wsi("tile", table, "-o", run, *PX)
    assert statuses(run) == {"a": "skipped", "b": "skipped", "c": "done", "d": "skipped"}
    assert set(corners(run, "c")) == places(0, 0, 240, 240)


def test_a_word_that_is_no_tissue_method_is_refused_with_those_there_are(tmp_path):
    table = tmp_path / "slides.csv"
    table.write_text("slide_id,path,tissue\na,a.svs,hsv\nb,b.svs,otsoo\n")
    with pytest.raises(ManifestError, match=r"line 3.*'otsoo' is neither.*otsu, hsv, texture, fluorescence, none"):
        read_manifest(table)
    assert "'otsoo'" in wsi("tile", table, "-o", tmp_path / "run", code=2)
    assert not (tmp_path / "run").exists()


def test_tissue_is_a_method_a_mask_or_a_folder_of_masks(tmp_path):
    source = slides(tmp_path / "slides", "a", "b")
    run = tmp_path / "run"
    wsi("tile", source, "-o", run, *PX, "--tissue", "none")
    assert len(corners(run, "a")) == 80
    one = write_mask(tmp_path / "one.png", (0, 0, 600, 480))
    wsi("tile", source / "a.svs", "-o", run, *PX, "--tissue", one)
    assert set(corners(run, "a")) == places(0, 0, 600, 480)
    write_mask(tmp_path / "masks" / "a.png", (0, 0, 240, 240))
    text = wsi("tile", source, "-o", run, *PX, "--tissue", tmp_path / "masks", code=1)
    assert statuses(run) == {"a": "done", "b": "failed"}
    assert set(corners(run, "a")) == places(0, 0, 240, 240)
    assert "masks has no file for slide 'b'" in text
    write_regions(tmp_path / "masks" / "b.geojson", ((960, 720, 1200, 960), "any"))
    assert "1 done · 1 already there" in wsi("tile", source, "-o", run, *PX, "--tissue", tmp_path / "masks")
    assert set(corners(run, "b")) == places(960, 720, 1200, 960)


def test_one_file_is_of_one_slide_never_of_a_cohort(tmp_path):
    source, run = slides(tmp_path / "slides", "a", "b"), tmp_path / "run"
    mask = write_mask(tmp_path / "m.png", (0, 0, 600, 480))
    drawn = write_regions(tmp_path / "drawn.geojson", ((0, 0, 480, 480), "Tumor"))
    for option, file in (("--tissue", mask), ("--include", drawn), ("--exclude", drawn), ("--coords", drawn)):
        text = wsi("tile", source, "-o", run, *PX, option, file, code=2)
        assert "is of one slide, and there are 2; name a folder with one file a slide" in text
    assert not run.exists()
    table = source / "slides.csv"
    table.write_text("slide_id,path,tissue\na,a.svs,none\nb,b.svs,\n")
    wsi("tile", table, "-o", run, *PX, "--tissue", mask)  # it is of the one slide that has no tissue of its own
    assert set(corners(run, "b")) == places(0, 0, 600, 480)
    assert len(corners(run, "a")) == 80


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--tissue", "otso"], "'otso' is neither a method nor a file"),
        (["--tissue", "mask"], "'mask' is neither a method nor a file"),
        (["--tissue", "learned"], "tissue.weights: tissue method 'learned' needs it; name the file"),
        (["--drop", "blurr"], "'blurr'] unknown; choose of pen, blur, fold, dark, bubble"),
        (["--drop", "blur", "--no-qc"], "nothing is measured"),
        (["--max-tiles", "0"], "tile.max_tiles: 0 is out of range"),
        (["--memory", "lots"], "--memory: 'lots' is no amount of memory; give such as 1GiB or 512MiB"),
        (["--memory", "3MiB"], "jobs.read_mib: 3 is out of range; give at least 256"),
        (["--timeout", "0"], "jobs.deadline_s: 0.0 is out of range"),
        (["--icc", "adobe"], "tile.icc: adobe is out of range; give none or srgb"),
        (["--channels", "DAPI"], "no choice of a channel"),
        (["--patches", "png"], "patches: 'png' is unknown; choose none, raw, jpeg, native"),
        (["--export", "png"], "no patches are stored to export; add --patches raw, jpeg or native"),
        (["--export", "zip", "--patches", "raw"], "export: 'zip' is unknown; choose png, jpg, tar"),
        (["--set", "tile.tisue.mpp=4"], "the key 'tisue' is unknown; did you mean 'tissue'?"),
        (["--set", "tile.mmp=4"], "the key 'mmp' is unknown; did you mean 'mpp'?"),
        (["--set", "tile=4"], "'tile' is a section of settings, not 4"),
        (["--set", "tile.mpp.x=4"], "mpp: {'x': 4} does not fit (input should be a valid number)"),
        (["--set", "tile.mpp"], "'tile.mpp' is no setting; give KEY=VALUE"),
        (["--set", "tile.mpp={"], "'{' is no value in YAML"),
        (["--set", "tile.mpp=wide"], "mpp: 'wide' does not fit"),
        (["--set", "tile.channels=3"], "channels: 3 does not fit"),
        (["--coords", "nowhere", "--max-tiles", "3"], "tiles that are given are all kept"),
        (["--coords", "nowhere", "--min-tissue", "0.5"], "tiles that are given are all kept"),
        (["--coords", "nowhere", "--stride-px", "100"], "leave out include, exclude, max_tiles, drop, min_tissue"),
        (["--seed", "-1"], "tile.seed: -1 is out of range"),
        (["--patches", "native", "--icc", "srgb"], "copied, not colour-corrected"),
        (["--tissue", "learned", "--tissue-weights", __file__], "it is no file of weights"),
        (["--coords", "nowhere"], "coords: there is no file or folder nowhere"),
        (["--include", "nowhere.xml"], "regions.include: there is no file or folder nowhere.xml"),
        (["--exclude", "nowhere"], "regions.exclude: there is no file or folder nowhere"),
        (["--tissue", "learned", "--tissue-weights", "no.ckpt"], "tissue.weights: there is no file or folder no.ckpt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_ends_before_any_work_and_says_what_would_be_right(tmp_path, options, problem):
    write_svs(tmp_path / "a.svs", section(300, 240, (0, 0, 300, 240)), SvsOptions(downsamples=(1,)))
    assert problem in wsi("tile", tmp_path / "a.svs", "-o", tmp_path / "run", *options, code=2)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def field(real_slide):
    """Real H&E at 0.5 µm per pixel: uint8 (960, 1200, 3)."""
    from wsi import Region, open_slide

    with open_slide(real_slide) as slide:
        return slide.read(Region(300, 600, 1200, 960), 0)


def test_pen_is_taken_out_unless_told_not_to(tmp_path, field):
    marked = cv2.line(field.copy(), (100, 480), (1100, 480), (40, 90, 180), 260)
    write_svs(tmp_path / "a.svs", marked)
    run = tmp_path / "run"
    wsi("tile", tmp_path / "a.svs", "-o", run, *PX)
    without = set(corners(run, "a"))
    assert 0.25 < store(run, "a").array("pen").mean() < 0.45  # the stroke is 0.27, and a rim of 30 µm goes with it
    assert {one["properties"]["classification"]["name"] for one in outlines(run, "a")} == {"Tissue", "Pen"}
    wsi("tile", tmp_path / "a.svs", "-o", run, *PX, "--no-pen")
    assert "pen" not in store(run, "a").group
    assert without < set(corners(run, "a"))
    assert {x for x, y in set(corners(run, "a")) - without if y == 480} >= {120, 240, 360, 480}
    assert {one["properties"]["classification"]["name"] for one in outlines(run, "a")} == {"Tissue"}


def outlines(run, slide_id):
    return json.loads((run / "tissue" / f"{slide_id}.geojson").read_text())["features"]


def blurred(pixels, right):
    """The left part, up to x = right, out of focus."""
    out = pixels.copy()
    out[:, :right] = cv2.GaussianBlur(pixels, (0, 0), 8)[:, :right]
    return out


def test_quality_is_measured_flagged_and_left_out_and_counted_on_the_sheet(tmp_path, field):
    write_svs(tmp_path / "a.svs", blurred(field, 600))
    run = tmp_path / "run"
    options = ("tile", tmp_path / "a.svs", "-o", run, *PX, "--tissue", "none", "--tile-mpp", "0.5")
    wsi(*options)
    seen = store(run, "a")
    flagged = {tuple(corner) for corner in seen.grid.xy[seen.array("flag_blur")].tolist()}
    assert flagged >= places(0, 0, 480, 960)
    assert not any(x > 600 for x, _ in flagged)
    sheet = (run / "report" / "tissue.html").read_text()
    assert f'<span class="tag">blur {len(flagged)}</span>' in sheet
    assert "left out" not in sheet
    wsi(*options, "--drop", "blur, dark")
    left = store(run, "a")
    assert set(map(tuple, left.grid.xy.tolist())) == places(0, 0, 1200, 960) - flagged
    assert left.notes["left_out"] == {"blur": len(flagged)}
    assert not left.array("flag_blur").any()
    sheet = (run / "report" / "tissue.html").read_text()
    assert f"left out: blur {len(flagged)}</div>" in sheet
    assert 'class="tag">blur' not in sheet
    wsi(*options, "--no-qc")
    assert store(run, "a").extra == {}
    assert len(corners(run, "a")) == 80


@pytest.mark.parametrize("write", [write_regions, write_asap])
def test_tiles_lie_in_the_regions_of_the_chosen_classes_and_not_in_others(tmp_path, write):
    suffix = "xml" if write is write_asap else "geojson"
    source = slides(tmp_path / "slides", "a", "b")
    drawn, run = tmp_path / "drawn", tmp_path / "run"
    write(drawn / f"a.{suffix}", ((0, 0, 480, 480), "Tumor"), ((480, 0, 720, 480), "Stroma"))
    write(drawn / f"b.{suffix}", ((240, 240, 480, 480), "Tumor"))
    options = ("tile", source, "-o", run, *PX, "--tissue", "none", "--include", drawn)
    wsi(*options)
    assert set(corners(run, "a")) == places(0, 0, 720, 480)
    wsi(*options, "--include-class", "tumor")
    assert set(corners(run, "a")) == places(0, 0, 480, 480)
    assert set(corners(run, "b")) == places(240, 240, 480, 480)
    wsi(*options, "--exclude", drawn, "--exclude-class", "Tumor", "--exclude-class", "Stroma", code=0)
    assert corners(run, "a") == []
    assert statuses(run) == {"a": "empty", "b": "empty"}
    wsi(*options)
    write(drawn / f"a.{suffix}", ((0, 0, 240, 240), "Tumor"))
    wsi(*options)
    assert statuses(run) == {"a": "done", "b": "skipped"}
    assert set(corners(run, "a")) == places(0, 0, 240, 240)
    text = wsi(*options, "--include-class", "Necrosis", code=1)
    assert "drawn has the class Necrosis" in text
    assert "the classes there are: Tumor" in text
    (drawn / f"b.{suffix}").unlink()
    text = wsi(*options, code=1)
    assert statuses(run) == {"a": "skipped", "b": "failed"}
    assert "has no file for slide 'b'" in text


def test_a_missing_class_of_an_option_is_an_error_also_in_a_dry_run(tmp_path):
    source = slides(tmp_path / "slides", "a")
    drawn = write_regions(tmp_path / "a.geojson", ((0, 0, 480, 480), "Tumor"))
    options = ("--include", drawn, "--include-class", "Necrosis", "--dry-run")
    assert "class Necrosis" in wsi("tile", source, "-o", tmp_path / "run", *PX, *options, code=1)
    assert not (tmp_path / "run").exists()


def test_at_most_so_many_tiles_are_drawn_by_the_seed(tmp_path):
    source = slides(tmp_path / "slides", "a")
    options = ("tile", source, *PX, "--tissue", "none", "--max-tiles", 9)
    drawn = []
    for name, seed in (("one", 0), ("again", 0), ("other", 7)):
        wsi(*options, "-o", tmp_path / name, "--seed", seed)
        drawn.append(corners(tmp_path / name, "a"))
    assert [len(one) for one in drawn] == [9, 9, 9]
    assert drawn[0] == drawn[1] != drawn[2]
    assert store(tmp_path / "one", "a").grid.found == 80
    assert "9 of 80 tiles" in (tmp_path / "one" / "report" / "tissue.html").read_text()
    wsi(*options, "-o", tmp_path / "one", "--max-tiles", 100)
    assert store(tmp_path / "one", "a").grid.found is None


def test_a_recipe_lies_under_set_and_set_under_an_options_value(tmp_path):
    source = slides(tmp_path / "slides", "a")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "tile:\n  tile_px: 100\n  min_tissue: 0.1\n  stride_px: 50\n  tissue:\n    mpp: 4\n    pen: false\n"
    )
    pairs = ("--set", "tile.tile_px=110", "--set", "tile.min_tissue=0.2", "--set", "tile.stride_px=null")
    run = tmp_path / "run"
    wsi("tile", source, "-o", run, "-c", recipe, *pairs, "--tile-px", 120, "--memory", "256MiB", "--timeout", 30)
    tile = store(run, "a").grid.spec
    assert (tile.tile_px, tile.min_tissue, tile.stride_px) == (120, 0.2, None)
    assert (tile.tissue.mpp, tile.tissue.pen) == (4.0, False)
    jobs = json.loads((run / "run.json").read_text())["settings"]["jobs"]
    assert (jobs["read_mib"], jobs["deadline_s"]) == (256, 30.0)


def test_a_rerun_keeps_the_pictures_and_makes_those_that_are_missing_or_older(tmp_path):
    source = slides(tmp_path / "slides", "a")
    run = tmp_path / "run"
    wsi("tile", source, "-o", run, *PX)
    picture, drawn = run / "tissue" / "a.jpg", run / "tissue" / "a.geojson"
    before = picture.stat().st_mtime_ns
    wsi("tile", source, "-o", run, *PX)
    assert picture.stat().st_mtime_ns == before
    drawn.unlink()
    wsi("tile", source, "-o", run, *PX)
    assert drawn.exists()
    old = drawn.read_text()
    wsi("tile", source, "-o", run, *PX, "--tissue", "none")
    assert statuses(run) == {"a": "done"}
    assert drawn.read_text() != old


def test_a_dry_run_counts_what_a_run_would_find_and_writes_nothing(tmp_path):
    source = slides(tmp_path / "slides", "a", "b")
    for name in "ab":
        write_mask(tmp_path / "masks" / f"{name}.png", (0, 0, 600, 480))
    run = tmp_path / "run"
    options = ("tile", source, "-o", run, *PX, "--tissue", tmp_path / "masks", "--patches", "raw")
    text = wsi(*options, "--dry-run")
    assert "2 slides with 40 tiles of 120 px at 0.5 µm/px; 0 of them are tiled already" in text
    assert not run.exists()
    wsi(*options)
    assert "2 of them are tiled already, 0 cannot be read. It would write about 0.0 MB" in wsi(*options, "--dry-run")
    assert len(corners(run, "a")) == 20


def test_glass_alone_is_empty_and_stands_first_on_the_sheet(tmp_path):
    source = slides(tmp_path / "slides", "a")
    write_svs(source / "z.svs", np.full((600, 800, 3), GLASS, np.uint8))
    run = tmp_path / "run"
    assert "1 done · 1 empty" in wsi("tile", source, "-o", run, *PX)
    page = (run / "report" / "tissue.html").read_text()
    assert page.index('<div class="name">z</div>') < page.index('<div class="name">a</div>')
    assert outlines(run, "z") == []
