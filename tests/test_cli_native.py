"""Tiles that are not those of the backbone's authors: warned of, and refused when that is asked."""

import pytest

from tests.commands import slides, wsi


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return slides(tmp_path_factory.mktemp("slides"), "s")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], ""),
        (["--tile-px", "128"], "tiles of 128 px, its authors' have 224"),
        (["--backbone", "uni", "--tile-mpp", "1.0"], "1 µm/px, its authors' have 0.5"),
        (["--backbone", "virchow2", "--tile-mpp", "1.0"], ""),  # trained at several scales
    ],
)
def test_tiles_of_another_size_or_scale_are_warned_of_and_refused_when_strict(folder, tmp_path, options, said):
    shown = wsi("tile", folder, "-o", tmp_path / "run", "--dry-run", *options)
    assert (said in " ".join(shown.split())) if said else "warning" not in shown
    strict = wsi("tile", folder, "-o", tmp_path / "run", "--dry-run", "--strict", *options, code=2 if said else 0)
    assert ("leave out --strict" in " ".join(strict.split())) == bool(said)


def test_embedding_warns_by_the_tiles_that_are_there(folder, tmp_path):
    wsi("tile", folder, "-o", tmp_path, "--tile-px", "128")
    assert "tiles of 128 px" in wsi("embed", folder, "-o", tmp_path, "--dry-run")
    assert "tiles of 128 px" in wsi("embed", folder, "-o", tmp_path, "--dry-run", "--strict", code=2)
