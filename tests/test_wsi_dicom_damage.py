"""Damaged, forged or absurd DICOM: refused in bounded time and memory, or its tiles are lost; never wrong pixels."""

import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.dicom_slides import DicomOptions, encode, write_dicom
from tests.slides import tissue_like
from wsi import Region, SlideError, TileError, open_slide
from wsi.formats.dicom_frames import choose_decoder
from wsi.formats.tilewise import BadTile

IMAGE = tissue_like(700, 460)
WIDTH, HEIGHT = 700, 460
CODECS = {
    "jpeg": "YBR_FULL_422", "jpeg2000": "RGB", "jpeg-ls": "RGB", "rle": "RGB", "uncompressed": "RGB", "htj2k": "RGB",
}  # fmt: skip
ITEM = b"\xfe\xff\x00\xe0"


@pytest.fixture(scope="module", params=list(CODECS))
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "a.dcm"
    return write_dicom(path, IMAGE, DicomOptions(request.param, CODECS[request.param]))


def _frames(data: bytes) -> list[tuple[int, int]]:
    """(offset, bytes) of the frames in the items that follow the offset table."""
    at = data.rindex(b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff") + 12
    found = []
    while data[at : at + 4] == ITEM:
        length = struct.unpack_from("<I", data, at + 4)[0]
        found.append((at + 8, length))
        at += 8 + length
    return found[1:]


def _silently_wrong(path: Path, good: Path) -> list[str]:
    try:
        slide = open_slide(path)
    except SlideError:
        return []
    with slide, open_slide(good) as truth:
        size = truth.levels[0]
        if (slide.levels[0].width, slide.levels[0].height) != (size.width, size.height):
            return ["another size"]
        xy = np.array([[x, y] for y in range(0, size.height, 128) for x in range(0, size.width, 128)])
        pixels, expected = (np.empty((len(xy), 128, 128, 3), np.uint8) for _ in range(2))
        ok = slide.read_many(xy, 0, pixels)
        truth.read_many(xy, 0, expected)
        return [str(corner) for corner in xy[ok & (pixels != expected).any(axis=(1, 2, 3))].tolist()]


@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.65, 0.9, 0.999, 1.0])
def test_a_truncated_slide_is_refused(sound, tmp_path, share):
    data = sound.read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(data[: min(int(len(data) * share), len(data) - 9)])
    with pytest.raises(SlideError) as refusal:
        open_slide(path)
    if share > 0.01:
        assert "copy the file again" in refusal.value.args[2]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.65, 0.9, 0.99])
def test_a_tail_of_zeros_is_never_read_as_pixels(sound, tmp_path, share):
    if b"1.2.840.10008.1.2.1\0" in sound.read_bytes()[:400]:
        pytest.skip("zeros are black pixels where nothing is compressed")
    data = sound.read_bytes()
    path = tmp_path / "tail.dcm"
    path.write_bytes(data[: int(len(data) * share)].ljust(len(data), b"\0"))
    assert _silently_wrong(path, sound) == []


@pytest.mark.parametrize("damage", ["zeros", "garbage", "half", "other size", "no item"])
def test_a_damaged_frame_is_lost_and_no_other(tmp_path, damage):
    sound = write_dicom(tmp_path / "sound.dcm", IMAGE)
    other = write_dicom(tmp_path / "other.dcm", IMAGE[:64, :64].copy(), DicomOptions(tile=64, series="7"))
    data, path = bytearray(sound.read_bytes()), tmp_path / "a" / "damaged.dcm"
    path.parent.mkdir()
    offset, count = _frames(bytes(data))[7]
    start, length = _frames(other.read_bytes())[0]
    new = {
        "zeros": bytes(count),
        "garbage": np.random.default_rng(0).integers(0, 256, count, np.uint8).tobytes(),
        "half": data[offset : offset + count // 2] + bytes(count - count // 2),
        "other size": other.read_bytes()[start : start + length].ljust(count, b"\0")[:count],
        "no item": b"",
    }[damage]
    if damage == "no item":
        data[offset - 8 : offset - 4] = b"abcd"
    else:
        data[offset : offset + count] = new
    path.write_bytes(data)
    with open_slide(path) as slide, open_slide(sound) as good:
        xy = np.array([[x, y] for y in range(0, HEIGHT, 128) for x in range(0, WIDTH, 128)])
        pixels, expected = (np.empty((len(xy), 128, 128, 3), np.uint8) for _ in range(2))
        ok = slide.read_many(xy, 0, pixels)
        assert good.read_many(xy, 0, expected).all()
        assert np.flatnonzero(~ok).tolist() == [7]
        assert np.array_equal(pixels[ok], expected[ok])
        with pytest.raises(TileError, match="row 1, column 1"):
            slide.read(Region(128, 128, 100, 100), 0)


def test_flipped_bytes_of_the_structure_give_no_wrong_pixels(tmp_path):
    options = DicomOptions("jpeg2000", "RGB", table="extended")
    sound = write_dicom(tmp_path / "sound.dcm", IMAGE[:200, :300].copy(), options)
    data = sound.read_bytes()
    profile = data.index(b"i" * 1000)
    places = [*range(132, profile), *range(profile + 100_000, data.rindex(b"\xe0\x7f\x10\x00OB") + 20)]
    rng = np.random.default_rng(1)
    path = tmp_path / "flips" / "a.dcm"
    path.parent.mkdir()
    opened = 0
    for at in rng.choice(places, 50, replace=False).tolist():
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        wrong = _silently_wrong(path, sound)
        assert wrong == [] or wrong == ["another size"], at  # 300 px may become 301 within the same frames
        opened += not wrong
    assert opened > 20


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"NumberOfFrames": 25}, r"frames"),
        ({"NumberOfFrames": 2_000_000_000}, r"frames"),
        ({"TotalPixelMatrixColumns": 900}, r"does not match tile size"),
        ({"TotalPixelMatrixColumns": 4_000_000_000, "TotalPixelMatrixRows": 4_000_000_000}, r"\d"),
        ({"Rows": 65_535, "Columns": 65_535}, r"\d"),
        ({"Rows": 65_535, "Columns": 65_535, "NumberOfFrames": 1, "TotalPixelMatrixColumns": 65_535,
          "TotalPixelMatrixRows": 65_535}, r"implausible size: .* 65,535 x 65,535 px"),
        ({"Rows": 1, "Columns": 1, "NumberOfFrames": 322_000}, r"claims 322,000 frames"),
        ({"TotalPixelMatrixFocalPlanes": 7}, r"does not match|need"),
        ({"SharedFunctionalGroupsSequence": None, "ImageType": None}, r"no ImageType"),
        ({"SeriesInstanceUID": ""}, r"names no series"),
    ],
)  # fmt: skip
def test_structure_that_contradicts_itself_is_refused(tmp_path, more, said):
    path = write_dicom(tmp_path / "a.dcm", IMAGE, DicomOptions(more=more))
    with pytest.raises(SlideError, match=said):
        open_slide(path)


@pytest.mark.parametrize("value", [0.0, -1.0, 28.97, 1e-9])
def test_a_pixel_size_that_cannot_be_true_is_not_used(tmp_path, value):
    path = write_dicom(tmp_path / "a.dcm", IMAGE, DicomOptions(mpp=value))
    with open_slide(path) as slide:
        assert slide.info.mpp is None
        assert slide.info.mpp_problem
    with open_slide(path, mpp=0.25) as slide:
        assert slide.info.mpp == 0.25


def test_a_level_of_other_proportions_is_refused(tmp_path):
    write_dicom(tmp_path / "a.dcm", IMAGE)
    write_dicom(tmp_path / "b.dcm", IMAGE[:100].copy())
    with pytest.raises(SlideError, match="other proportions than level 0"):
        open_slide(tmp_path)


def test_a_file_of_the_slide_that_cannot_be_read_is_named(tmp_path):
    write_dicom(tmp_path / "a.dcm", IMAGE)
    write_dicom(tmp_path / "b.dcm", IMAGE[::2, ::2].copy())
    (tmp_path / "b.dcm").write_bytes(bytes(5_000))
    said = r"b.dcm: its name says DICOM, but it is no DICOM file \(found while collecting the series of a.dcm\)"
    with pytest.raises(SlideError, match=said):
        open_slide(tmp_path / "a.dcm")


def test_a_stray_file_of_another_kind_beside_a_named_slide_is_none_of_it(tmp_path):
    write_dicom(tmp_path / "a.dcm", IMAGE)
    (tmp_path / "notes.dcm").write_text("hello")
    with open_slide(tmp_path / "a.dcm") as slide:
        assert (slide.info.reader, slide.levels[0].width) == ("dicom", IMAGE.shape[1])
    said = r"notes.dcm: its name says DICOM.*\(found while collecting the series of .*move it to another folder"
    with pytest.raises(SlideError, match=said):  # a folder is taken whole
        open_slide(tmp_path)


def _nested(depth: int) -> bytes:
    """A sequence of undefined length within a sequence within … (0008,1140)."""
    return (
        b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" * 0
        + (b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + ITEM + b"\xff\xff\xff\xff") * depth
        + (b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0") * depth
    )


def _forged(sound: bytes, kind: str) -> bytes:
    """T92 of the reliability requirements: what an uploaded file may try."""
    series = sound.index(b"\x20\x00\x0e\x00UI")
    if kind == "nested before the series":
        return sound[:series] + _nested(10_000) + sound[series:]
    if kind == "nested in the groups":
        at = sound.index(b"\x00\x52\x29\x92SQ")  # SharedFunctionalGroupsSequence, of defined length
        return sound[:at] + b"\x00\x52\x29\x92SQ\0\0\xff\xff\xff\xff" + ITEM + b"\xff\xff\xff\xff" + _nested(10_000) + (
            b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0") + sound[at:]  # fmt: skip
    if kind == "forged length":
        return sound[:series] + b"\x08\x00\x50\x11UN\0\0\xf0\xff\xff\xff" + sound[series:]
    if kind == "deflate bomb":
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = b"".join(packer.compress(bytes(1 << 24)) for _ in range(8)) + packer.flush()
        start = 132 + 12 + struct.unpack_from("<I", sound, 140)[0]
        head = sound[:start].replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.1.99")
        return head + bomb
    if kind == "giant JPEG":  # each frame's header claims 65,500 x 65,500 px
        return sound.replace(b"\xff\xc0\x00\x11\x08\x00\x80\x00\x80", b"\xff\xc0\x00\x11\x08\xff\xdc\xff\xdc")
    raise KeyError(kind)


@pytest.mark.parametrize(
    "kind", ["nested before the series", "nested in the groups", "forged length", "deflate bomb", "giant JPEG"]
)
def test_forged_files_are_refused_in_little_time_and_memory(tmp_path, kind):
    path = tmp_path / "forged.dcm"
    sound = write_dicom(tmp_path / "sound.dcm", IMAGE).read_bytes()
    (tmp_path / "sound.dcm").unlink()
    forged = _forged(sound, kind)
    assert forged != sound
    path.write_bytes(forged)
    code = (
        "import sys, wsi\n"
        "try:\n"
        "    with wsi.open_slide(sys.argv[1]) as slide: slide.read(wsi.Region(0, 0, 300, 300), 0)\n"
        "except wsi.SlideError as error: print(str(error)[:300])\n"
    )
    limit = 2 << 30

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=confine,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert "forged.dcm: " in done.stdout


TILE = np.ascontiguousarray(IMAGE[:64, :64])
RLE = encode(TILE, "rle", "RGB")
STARTS = struct.unpack_from("<3I", RLE, 4)


def _rle(*numbers: int, body: bytes = RLE[64:]) -> bytes:
    return np.array([*numbers, *[0] * (16 - len(numbers))], "<u4").tobytes() + body


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        ("rle", _rle(3, *STARTS, body=RLE[64:] + b"\x81\x00" * 100_000)),
        ("rle", _rle(3, 64, STARTS[1], 1 << 31)),
        ("rle", _rle(15, *[64] * 15)),
        ("rle", _rle(3, 64, STARTS[2], STARTS[1])),
        ("rle", RLE[:-40]),
        ("rle", b"\3"),
        ("uncompressed", bytes(64 * 64 * 3 - 1)),
        ("uncompressed", bytes(64 * 64 * 3 + 1)),
        ("jpeg-ls", encode(IMAGE[:128, :128].copy(), "jpeg-ls", "RGB")),
        ("jpeg-ls", encode(TILE, "jpeg-ls", "RGB")[:-200]),
        ("jpeg-ls", encode(TILE, "jpeg-ls", "RGB").replace(b"\x08\x00\x40\x00\x40\x03", b"\x08\xff\xff\xff\xff\x03")),
        ("jpeg2000", encode(IMAGE[:128, :128].copy(), "jpeg2000", "RGB")),
        ("jpeg2000", encode(TILE, "jpeg2000", "RGB")[:-200]),
        ("jpeg2000", encode(TILE, "jpeg2000", "RGB").replace(bytes([0, 0, 0, 64] * 2), bytes([127, 0, 0, 64] * 2))),
        ("htj2k", encode(TILE, "htj2k", "RGB")[:-200]),
        ("jpeg", b""),
    ],
)  # fmt: skip
def test_a_frame_that_is_not_exactly_the_tile_is_no_tile(codec, data):
    choice = choose_decoder(codec, "RGB", [data])
    assert not isinstance(choice, str)
    with pytest.raises(BadTile):
        choice.decoder.decode(data, np.empty((64, 64, 3), np.uint8))
    choice = choose_decoder(codec, "RGB", [])
    sound = encode(TILE, codec, "RGB")
    into = np.empty((64, 64, 3), np.uint8)
    choice.decoder.decode(sound, into)
    assert codec == "jpeg" or np.array_equal(into, TILE)
