"""OME-Zarr: pixels exactly those of the array; missing and damaged chunks are never shown as something else."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import zarr

from tests.slides import tissue_like
from wsi import Region, SlideError, SpecError, TileError, open_slide
from wsi.channels import Channels

RGB = ({"color": "FF0000"}, {"color": "00FF00"}, {"color": "0000FF"})


@dataclass(frozen=True)
class NgffOptions:
    """How `write_ngff` writes; the defaults are a sound RGB image of NGFF 0.5.

    pixel_um, unit  of the finest level, None leaves them out
    omero           entries of omero.channels, None for no omero
    chunk           (c, y, x)
    array           further arguments of zarr.create_array
    """

    version: str = "0.5"
    axes: str = "cyx"
    chunk: tuple[int, int, int] = (3, 128, 96)
    pixel_um: float | None = 0.5
    unit: str | None = "micrometer"
    omero: tuple[dict, ...] | None = None
    fill_value: int = 0
    array: tuple[tuple[str, object], ...] = ()


def write_ngff(path: Path, levels: list[np.ndarray], options: NgffOptions | None = None) -> Path:
    """Write levels, each (channels, rows, cols) and finest first, as an OME-Zarr image; returns `path`."""
    options = options or NgffOptions()
    zarr_format = 2 if options.version == "0.4" else 3
    group = zarr.create_group(path, zarr_format=zarr_format)
    sizes = dict(zip("cyx", options.chunk, strict=True))
    datasets = []
    for number, level in enumerate(levels):
        extents = dict(zip("cyx", level.shape, strict=True))
        array = group.create_array(
            str(number),
            shape=[extents.get(axis, 1) for axis in options.axes],
            chunks=[sizes.get(axis, 1) for axis in options.axes],
            dtype=level.dtype,
            fill_value=options.fill_value,
            **dict(options.array),
        )
        places = [("cyx").index(axis) for axis in options.axes if axis in "cyx"]
        values = level[0] if "c" not in options.axes else level.transpose(places)
        array[tuple(slice(None) if axis in "cyx" else 0 for axis in options.axes)] = values
        step = levels[0].shape[2] / level.shape[2] * (options.pixel_um or 1)
        scale = [step if axis in "yx" else 1.0 for axis in options.axes]
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": axis, "type": {"t": "time", "c": "channel"}.get(axis, "space")} for axis in options.axes]
    for axis in axes:
        if axis["type"] == "space" and options.unit:
            axis["unit"] = options.unit
    stated = {"multiscales": [{"axes": axes, "datasets": datasets, "version": options.version}]}
    if options.omero is not None:
        stated["omero"] = {"channels": list(options.omero)}
    group.attrs.update(stated if zarr_format == 2 else {"ome": {"version": options.version, **stated}})
    return path


def pyramid(width: int = 700, height: int = 530) -> list[np.ndarray]:
    """Three RGB levels, (3, rows, cols) each."""
    image = tissue_like(width, height)
    return [np.ascontiguousarray(np.moveaxis(image[::step, ::step], 2, 0)) for step in (1, 2, 4)]


def white_around(level: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """What a read must give: (height, width, 3) with white beyond the level."""
    canvas = np.full((level.shape[1] + 2000, level.shape[2] + 2000, 3), 255, np.uint8)
    canvas[1000:-1000, 1000:-1000] = np.moveaxis(level, 0, 2)
    return canvas[1000 + y : 1000 + y + height, 1000 + x : 1000 + x + width]


@pytest.mark.parametrize(
    "options",
    [
        NgffOptions("0.4"),
        NgffOptions("0.4", axes="tczyx", chunk=(1, 128, 96), omero=RGB),
        NgffOptions("0.5"),
        NgffOptions("0.5", axes="czyx", array=(("shards", (3, 1, 384, 384)),)),
        NgffOptions("0.5", axes="yxc", chunk=(3, 200, 333)),
        NgffOptions("0.5", chunk=(3, 1024, 1024), array=(("compressors", None),)),
    ],
    ids=str,
)
def test_every_level_is_read_exactly_inside_across_and_beyond_the_border(tmp_path, options):
    levels = pyramid()
    with open_slide(write_ngff(tmp_path / "a.ome.zarr", levels, options)) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(700, 530), (350, 265), (175, 133)]
        assert (slide.info.reader, slide.info.mpp, slide.info.mpp_source) == ("ome_zarr", 0.5, "ome")
        for number, level in enumerate(levels):
            corners = np.array([(0, 0), (37, 91), (-50, -20), (level.shape[2] - 60, level.shape[1] - 60), (5000, 5000)])
            xy = np.rint(corners * slide.levels[number].downsample).astype(np.int64)
            out = np.zeros((len(xy), 150, 150, 3), np.uint8)
            assert slide.read_many(xy, number, out).all()
            for (x, y), pixels in zip(corners[:4].tolist(), out, strict=False):
                assert np.array_equal(pixels, white_around(level, x, y, 150, 150))
            assert (out[4] == 255).all()
        whole = slide.read(Region(-8, -12, 720, 560), 0)
        assert np.array_equal(whole, white_around(levels[0], -8, -12, 720, 560))


def test_threads_read_the_same_pixels(tmp_path):
    levels = pyramid()
    wrong = []
    with open_slide(write_ngff(tmp_path / "a.zarr", levels)) as slide:

        def read(seed: int) -> None:
            for x, y in np.random.default_rng(seed).integers(-50, 600, (10, 2)).tolist():
                if not np.array_equal(slide.read(Region(x, y, 99, 77), 0), white_around(levels[0], x, y, 99, 77)):
                    wrong.append((x, y))

        threads = [Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("pixel_um", "unit", "mpp", "problem"),
    [
        (250.0, "nanometer", 0.25, None),
        (2.5e-7, "meter", 0.25, None),
        (0.25, None, None, "no unit"),
        (0.25, "second", None, "no length"),
        (25.0, "micrometer", None, "outside"),
    ],
)
def test_the_scale_is_believed_only_with_a_unit_of_length(tmp_path, pixel_um, unit, mpp, problem):
    path = write_ngff(tmp_path / "a.ome.zarr", pyramid(), NgffOptions(pixel_um=pixel_um, unit=unit))
    with open_slide(path) as slide:
        assert slide.info.mpp == (pytest.approx(mpp) if mpp else None)
        assert problem is None or problem in (slide.info.mpp_problem or "")
    with open_slide(path, mpp=0.3) as slide:
        assert (slide.info.mpp, slide.info.mpp_source) == (0.3, "user")


def blank_chunk(levels: list[np.ndarray], value: int) -> list[np.ndarray]:
    """The same levels with one value in the chunk at row 1, column 1 of level 0, and what lies there in the others."""
    for number, level in enumerate(levels):
        level[:, 128 >> number : 256 >> number, 96 >> number : 192 >> number] = value
    return levels


@pytest.mark.parametrize(("version", "shards"), [("0.4", None), ("0.5", None), ("0.5", (3, 384, 384))])
@pytest.mark.parametrize("fill_value", [0, 255])
def test_a_chunk_left_out_by_the_writer_is_white_glass_whatever_the_fill_value(tmp_path, version, shards, fill_value):
    options = NgffOptions(version, fill_value=fill_value, array=(("shards", shards),))
    levels = blank_chunk(pyramid(), fill_value)
    with open_slide(write_ngff(tmp_path / "a.ome.zarr", levels, options)) as slide:
        assert (slide.read(Region(96, 128, 96, 128), 0) == 255).all()
        outside = slide.read(Region(200, 260, 90, 90), 0)
        assert np.array_equal(outside, white_around(levels[0], 200, 260, 90, 90))


@pytest.mark.parametrize("level", [0, 2])
def test_a_lost_chunk_is_a_bad_tile_when_another_level_shows_that_there_was_something(tmp_path, level):
    path = write_ngff(tmp_path / "a.ome.zarr", pyramid(), NgffOptions("0.4"))
    (path / str(level) / ("0.1.1" if level == 0 else "0.0.0")).unlink()
    x, y = (96, 128) if level == 0 else (0, 0)
    with open_slide(path) as slide:
        with pytest.raises(TileError, match="chunk is missing"):
            slide.read(Region(x, y, 90, 90), level)
        out = np.empty((2, 60, 60, 3), np.uint8)
        assert slide.read_many(np.array([[x, y], [500, 400]]), level, out).tolist() == [False, True]


def test_an_image_without_its_chunks_is_refused(tmp_path):
    path = write_ngff(tmp_path / "a.ome.zarr", pyramid())
    shutil.rmtree(path / "0" / "c")
    with pytest.raises(SlideError, match="level 0 has no chunks, only metadata"):
        open_slide(path)


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _noise(data: bytes) -> bytes:
    return np.random.default_rng(0).integers(0, 256, len(data), np.uint8).tobytes()


def _flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    ("version", "codec", "damage"),
    [
        (version, codec, damage)
        for version, codec in [
            ("0.4", "zstd"), ("0.4", "blosc"), ("0.4", "gzip"), ("0.4", None), ("0.5", "zstd"), ("0.5", "gzip"),
            ("0.5", "blosc"), ("0.5", None), ("0.5", "crc32c"),
        ]
        for damage in (_cut, _noise, _flip, lambda data: b"")
        if not (codec in (None, "zstd", "blosc") and damage is _flip)  # no checksum: nobody can know
        and not (codec is None and damage is _noise)
    ],
)  # fmt: skip
def test_a_damaged_chunk_is_a_bad_tile(tmp_path, version, codec, damage):
    import numcodecs
    from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

    v2 = {"zstd": numcodecs.Zstd(), "blosc": numcodecs.Blosc(), "gzip": numcodecs.GZip()}
    v3 = {"zstd": ZstdCodec(), "gzip": GzipCodec(), "blosc": BloscCodec(), "crc32c": Crc32cCodec()}
    compressor = (v2 if version == "0.4" else v3).get(codec)
    path = write_ngff(tmp_path / "a.zarr", pyramid(), NgffOptions(version, array=(("compressors", compressor),)))
    chunk = path / "0" / ("0.1.1" if version == "0.4" else "c/0/1/1")
    chunk.write_bytes(damage(chunk.read_bytes()))
    with open_slide(path) as slide:
        with pytest.raises(TileError, match="chunk cannot be decoded"):
            slide.read(Region(100, 140, 50, 50), 0)
        assert slide.read(Region(300, 300, 50, 50), 0).shape == (50, 50, 3)


def test_a_damaged_shard_index_is_found_by_its_checksum(tmp_path):
    path = write_ngff(tmp_path / "a.zarr", pyramid(), NgffOptions(array=(("shards", (3, 384, 384)),)))
    shard = path / "0" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[-50] ^= 1
    shard.write_bytes(data)
    with open_slide(path) as slide, pytest.raises(TileError, match="cannot be decoded"):
        slide.read(Region(0, 0, 64, 64), 0)


def _edit(path: Path, **changes: object) -> None:
    file = path / "zarr.json"
    stated = json.loads(file.read_text())
    stated["attributes"]["ome"].update(changes)
    file.write_text(json.dumps(stated))


def _own_store(path: Path) -> None:
    shutil.rmtree(path)
    zarr.create_group(path, attributes={"schema": "patches/1"})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_own_store, "not OME-Zarr but a patches/1 store"),
        (lambda path: (path / "zarr.json").write_text("{"), "metadata cannot be read"),
        (lambda path: _edit(path, multiscales=[{"axes": [], "datasets": []}]), "incomplete or damaged"),
        (lambda path: _edit(path, multiscales=[{"axes": ["y", "x", "c"], "datasets": [{"path": "../b"}]}]), "outside"),
        (lambda path: _edit(path, multiscales=[{"axes": ["y", "x"], "datasets": [{"path": "0"}]}]), "3 dimensions"),
        (lambda path: _edit(path, multiscales=[{"axes": "cyx", "datasets": [{"path": "7"}]}]), "level 7 is missing"),
        (lambda path: _edit(path, multiscales=[{"axes": "zyx", "datasets": [{"path": "0"}]}]), "3 focal planes"),
        (lambda path: _edit(path, multiscales=[{"axes": "tyx", "datasets": [{"path": "0"}]}]), "3 time points"),
        (
            lambda path: _edit(path, multiscales=[{"axes": "cyx", "datasets": [{"path": p} for p in "02211"]}]),
            "smaller",
        ),
        (lambda path: _edit(path, **{"image-label": {}}), "label image"),
        (lambda path: _edit(path, omero={"channels": [{"color": "0000FF"}] * 3}), "no RGB image"),
    ],
)
def test_what_is_no_rgb_slide_is_refused_by_name(tmp_path, change, problem):
    path = write_ngff(tmp_path / "a.zarr", pyramid())
    change(path)
    with pytest.raises(SlideError, match=problem):
        open_slide(path)


def test_a_plate_and_a_plain_folder_are_no_slides(tmp_path):
    zarr.create_group(tmp_path / "plate.zarr", zarr_format=2, attributes={"plate": {"wells": []}})
    with pytest.raises(SlideError, match="OME-Zarr plate, not a slide"):
        open_slide(tmp_path / "plate.zarr")
    (tmp_path / "plain.zarr").mkdir()
    with pytest.raises(SlideError, match="this is a folder, not a slide file"):
        open_slide(tmp_path / "plain.zarr")


def test_of_several_images_in_the_layout_of_bioformats2raw_the_largest_is_the_slide(tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_group(path, zarr_format=2, attributes={"bioformats2raw.layout": 3})
    zarr.create_group(path / "OME", zarr_format=2, attributes={"series": ["0", "1"]})
    levels = pyramid()
    write_ngff(path / "0", levels[2:], NgffOptions("0.4"))
    write_ngff(path / "1", levels, NgffOptions("0.4", axes="tczyx", chunk=(1, 256, 256)))
    with open_slide(path) as slide:
        assert "image 1, the largest of 2" in slide.info.why
        assert np.array_equal(slide.read(Region(11, 13, 300, 300), 0), white_around(levels[0], 11, 13, 300, 300))


def fluorescence(dtype: str, channels: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    base = rng.integers(0, 5000 if np.dtype(dtype).itemsize > 1 else 256, (channels, 300, 400)).astype(dtype)
    return [base, base[:, ::2, ::2]]


NAMED = tuple({"label": name, "color": "FFFFFF"} for name in ("DAPI", "CD3", "CD8", "Autofluorescence"))


def test_without_channels_a_fluorescence_image_is_refused_with_a_text_that_opens_it(tmp_path):
    path = write_ngff(tmp_path / "a.zarr", fluorescence("uint16"), NgffOptions(chunk=(1, 128, 128), omero=NAMED))
    with pytest.raises(SlideError, match="4 channels of uint16") as refusal:
        open_slide(path)
    assert "0 DAPI, 1 CD3, 2 CD8" in refusal.value.problem
    suggestion = refusal.value.args[2].partition("--channels ")[2]
    assert suggestion.startswith("DAPI=0000FF:0-65535,CD3=")
    with open_slide(path, channels=Channels.parse(suggestion)) as slide:
        assert slide.info.channels == suggestion


@pytest.mark.parametrize("chunk", [(1, 128, 128), (4, 100, 130)])
def test_chosen_channels_are_blended_at_every_level(tmp_path, chunk):
    levels = fluorescence("uint16")
    path = write_ngff(tmp_path / "a.zarr", levels, NgffOptions(chunk=chunk, omero=NAMED))
    with open_slide(path, channels=Channels.parse("cd8=FF8000:1000-4000,0=0000FF")) as slide:
        assert slide.info.channels == "cd8=FF8000:1000-4000,0=0000FF:0-65535"
        for number, level in enumerate(levels):
            share = np.clip((level[2] - 1000.0) / 3000, 0, 1)
            expected = np.floor(share[..., None] * (255, 128, 0) + 0.5)
            expected += np.floor((level[0] / 65535.0)[..., None] * (0, 0, 255) + 0.5)
            pixels = slide.read(Region(10, 20, 300, 200), number)
            step = 2**number
            expected = np.minimum(expected, 255)[20 // step : 220 // step, 10 // step : 310 // step]
            assert np.array_equal(pixels, expected.astype(np.uint8))


def test_a_chunk_without_signal_that_was_left_out_is_dark_and_a_lost_one_is_bad(tmp_path):
    levels = fluorescence("uint16")
    levels[0][1, :128, :128] = 0
    levels[1][1, :64, :64] = 0
    path = write_ngff(tmp_path / "a.zarr", levels, NgffOptions("0.4", chunk=(1, 128, 128), omero=NAMED))
    (path / "0" / "0.1.1").unlink()
    with open_slide(path, channels=Channels.parse("DAPI=0000FF:0-5000,CD3=00FF00:0-5000")) as slide:
        pixels = slide.read(Region(0, 0, 128, 128), 0)
        assert not pixels[..., 1].any()
        assert pixels[..., 2].any()
        with pytest.raises(TileError, match="chunk is missing"):
            slide.read(Region(130, 130, 20, 20), 0)


def test_channels_that_the_image_lacks_are_a_wrong_setting(tmp_path):
    path = write_ngff(tmp_path / "a.zarr", fluorescence("uint16"), NgffOptions(chunk=(1, 128, 128), omero=NAMED))
    for text in ("CD20=FF0000", "4=FF0000"):
        with pytest.raises(SpecError, match=r"no channel of the file, which has 4 channels of uint16 \(0 DAPI"):
            open_slide(path, channels=Channels.parse(text))
