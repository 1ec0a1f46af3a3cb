from importlib.resources import files

import pytest

from jobs.config import load_recipe, resolve, set_option
from wsi import BackboneError, SpecError

RECIPES = sorted(entry.name[:-5] for entry in files("configs").iterdir() if entry.name.endswith(".yaml"))
RUNS = [name for name in RECIPES if not name.startswith("cluster-")]  # those: tests/test_jobs_cluster.py


@pytest.mark.parametrize("name", RUNS)
def test_every_shipped_recipe_is_valid_and_says_what_it_is_for(name):
    spec = resolve(load_recipe(name))
    header = (files("configs") / f"{name}.yaml").read_text()
    for word in ("# Recipe:", "# Command:", "# Cost:", "# Result:"):
        assert word in header
    assert spec.embed.entry().dim > 0


def recipe(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tile:\n  tile_sice: 256", r"tile: the key 'tile_sice' is unknown; did you mean 'tile_px|did you mean"),
        ("tiles:\n  mpp: 1", "the key 'tiles' is unknown; did you mean 'tile'"),
        ("tile:\n  tissue:\n    metod: otsu", "'metod' is unknown; did you mean 'method'"),
        ("tile: 256", "'tile' is a section"),
        ("- a\n- b", "not a table of settings"),
        ("tile: {", "not valid YAML"),
        ("zzz: 1", "it knows tile, patches, export, coords"),
        ("a: 1\nb: {c", "line 2"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_with_the_nearest_name(tmp_path, text, problem):
    with pytest.raises(SpecError, match=problem):
        load_recipe(recipe(tmp_path, text))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"tile": {"mpp": "half"}}, "mpp: 'half' does not fit"),
        ({"tile": {"mpp": 50}}, "tile.mpp: 50.0 is out of range"),
        ({"jobs": {"executor": "threads"}}, "choose serial, processes or dask"),
        ({"train": {"folds": 1}}, "folds"),
        ({"heatmap": {"score": "rank"}}, "choose prediction, attention, gradient, occlusion"),
        ({"embed": {"backbone": ["uni"]}}, "backbone: .'uni'. does not fit"),
        ({"embed": {"backbone": None}}, "backbone: None does not fit"),
        ({"tile": {"tissue": {"max_hole_um2": float("inf")}}}, "max_hole_um2"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(settings, problem):
    with pytest.raises(SpecError, match=problem):
        resolve(settings)


def test_an_unknown_recipe_names_those_that_ship():
    with pytest.raises(SpecError, match="demo"):
        load_recipe("demmo")


def test_a_recipe_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"tile: \xff")
    with pytest.raises(SpecError, match="not UTF-8"):
        load_recipe(tmp_path / "r.yaml")


def test_tile_size_and_scale_are_the_backbones_unless_given():
    assert (resolve({}).tile.tile_px, resolve({}).tile.mpp) == (224, 0.5)
    uni = resolve({"embed": {"backbone": "uni"}})
    assert uni.tile.tile_px == 256
    assert resolve({"embed": {"backbone": "uni"}, "tile": {"tile_px": 512}}).tile.tile_px == 512


def test_options_lie_over_the_recipe(tmp_path):
    settings = load_recipe(recipe(tmp_path, "tile:\n  mpp: 1.0\n  min_tissue: 0.4"))
    set_option(settings, "tile.mpp", 2.0)
    set_option(settings, "tile.tissue.mpp", 16.0)
    tile = resolve(settings).tile
    assert (tile.mpp, tile.min_tissue, tile.tissue.mpp) == (2.0, 0.4, 16.0)


def test_a_models_contract_sets_backbone_and_tiles_and_refuses_others():
    contract = {"backbone": "resnet50", "tile_px": 300, "mpp": 1.0, "icc": "srgb", "channels": "DAPI=0000FF"}
    spec = resolve({"tile": {"channels": " DAPI=0000ff "}}, contract)
    assert (spec.embed.backbone, spec.tile.tile_px, spec.tile.mpp) == ("resnet50", 300, 1.0)
    assert (spec.tile.icc, spec.tile.channels) == ("srgb", "DAPI=0000FF")
    with pytest.raises(SpecError, match="icc: none was asked for, the model was trained on srgb"):
        resolve({"tile": {"icc": "none"}}, contract)
    assert spec.embed.precision == "auto"
    full = {**contract, "pooling": "pool", "precision": "bf16", "dtype": "float32", "views": 4}
    stained = {"method": "macenko", "jitter": 0.1, "seed": 3, "target": "ab12"}
    embed = resolve({}, {**full, "stain": stained}).embed
    assert (embed.variant, embed.precision, embed.dtype, embed.views) == ("pool", "bf16", "float32", 4)
    assert (embed.stain.method, embed.stain.jitter, embed.stain.seed) == ("macenko", 0.1, 3)
    refused = {
        "--precision": {"precision": "fp32"},
        "--stain": {"stain": {"method": "macenko"}},
        "--views": {"views": 1},
    }
    for option, asked in refused.items():
        with pytest.raises(SpecError, match=f"^{option}: .* the model was trained on .*leave it out"):
            resolve({"embed": asked}, {**full, "stain": None})
    with pytest.raises(SpecError, match=r"^--tile-mpp: "):
        resolve({"tile": {"mpp": 0.5}}, contract)
    older = {key: contract[key] for key in ("backbone", "tile_px", "mpp")}
    assert resolve({}, older).tile.icc == "none"
    with pytest.raises(SpecError, match="uni was asked for, the model was trained on resnet50"):
        resolve({"embed": {"backbone": "uni"}}, contract)


def test_an_unknown_backbone_is_refused_before_any_work():
    with pytest.raises(BackboneError, match="did you mean"):
        resolve({"embed": {"backbone": "uni2"}})
