"""The highest and lowest tiles come out as pictures of the right places."""

import csv

import cv2
import numpy as np
import pytest

from mil.tile_pictures import Choice, write_tile_pictures
from tests.slides import ArraySlide
from wsi.errors import SlideError, SpecError

SPAN = 64


def slide_and_tiles(mpp=0.5):
    """Every tile of an 8 x 8 grid in a grey of its own; the score is the grey."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    pixels = np.repeat(np.kron(grey, np.ones((SPAN, SPAN), np.uint8))[..., None], 3, axis=2)
    pixels[..., 0] += 50  # red, so that swapped channels show
    x, y = np.meshgrid(np.arange(8), np.arange(8))
    xy = np.stack([x.ravel(), y.ravel()], axis=1) * SPAN
    return ArraySlide([pixels, pixels[::2, ::2]], mpp), grey.ravel().astype(np.float32), xy.astype(np.int64)


@pytest.mark.parametrize("side", [32, 64, 100])
def test_pictures_show_the_tiles_they_are_named_for(tmp_path, side):
    slide, scores, xy = slide_and_tiles()
    files = write_tile_pictures(slide, scores, xy, SPAN, tmp_path / "tiles", Choice(count=3, side_px=side))
    kinds = [f"{kind}-0{rank}" for kind in ("highest", "lowest") for rank in (1, 2, 3)]
    assert [file.name.partition("_")[0] for file in files] == kinds
    with (tmp_path / "tiles" / "tiles.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == [file.name for file in files]
    assert [float(row["score"]) for row in rows[:3]] == sorted((float(row["score"]) for row in rows[:3]), reverse=True)
    for row, file in zip(rows, files, strict=True):
        place = np.flatnonzero((xy == (int(row["x"]), int(row["y"]))).all(axis=1)).item()
        assert float(row["score"]) == scores[place]
        picture = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        assert picture.shape == (side, side, 3)
        assert (picture == (scores[place] + 50, scores[place], scores[place])).all()


def test_an_older_folder_is_replaced_whole(tmp_path):
    slide, scores, xy = slide_and_tiles()
    write_tile_pictures(slide, scores, xy, SPAN, tmp_path / "tiles", Choice(count=4))
    files = write_tile_pictures(slide, -scores, xy, SPAN, tmp_path / "tiles", Choice(count=1))
    assert sorted(path.name for path in (tmp_path / "tiles").iterdir()) == sorted(
        [*(f.name for f in files), "tiles.csv"]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiles"]


def test_what_cannot_be_drawn_is_refused(tmp_path):
    slide, scores, xy = slide_and_tiles(mpp=None)
    with pytest.raises(SlideError, match="it was made without a pixel size"):
        write_tile_pictures(slide, scores, xy, SPAN, tmp_path / "tiles")
    with pytest.raises(SpecError, match="no size of a picture"):
        Choice(side_px=0)
    assert list(tmp_path.iterdir()) == []
