"""The file of a heatmap's numbers."""

from contextlib import suppress

import numpy as np
import pytest

from heatmaps import Heatmap
from heatmaps.scores import read_scores, write_scores
from wsi.errors import StoreError


def heatmap() -> Heatmap:
    xy = np.array([[0, 0], [512, 0], [0, 512]], np.int64)
    return Heatmap(
        "s/1 é",
        "tumor softmax",
        "tumor",
        np.array([0.1, 0.7, 1], np.float32),
        xy,
        512,
        measurements={"attention rank": np.array([0, 0.5, 1], np.float32)},
        failed_xy=np.array([[1024, 512]], np.int64),
        origin="4db7",
    )


def test_what_is_written_is_read(tmp_path):
    write_scores(heatmap(), tmp_path / "a.npz")
    write_scores(heatmap(), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    read, wanted = read_scores(tmp_path / "a.npz"), heatmap()
    for name in ("slide_id", "name", "class_name", "span_px", "limits", "origin"):
        assert getattr(read, name) == getattr(wanted, name)
    for name in ("scores", "xy", "failed_xy"):
        np.testing.assert_array_equal(getattr(read, name), getattr(wanted, name), strict=True)
    np.testing.assert_array_equal(read.measurements["attention rank"], wanted.measurements["attention rank"])


def test_a_file_that_is_missing_damaged_or_of_another_kind_is_named(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(StoreError, match="no scores of this slide"):
        read_scores(path)
    write_scores(heatmap(), path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with suppress(StoreError):  # or it is a byte that nobody reads, such as a time in the zip's directory
            np.testing.assert_array_equal(read_scores(path).scores, heatmap().scores)
    for end in range(0, len(whole) - 1, 11):
        path.write_bytes(whole[:end])
        with pytest.raises(StoreError):
            read_scores(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(StoreError, match="damaged"):
        read_scores(path)
