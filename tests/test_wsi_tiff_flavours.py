"""Which images of a TIFF are the slide, at which scale, and which files are left to others with a reason."""

from pathlib import Path

import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from numpy.typing import NDArray

from tests.slides import tissue_like
from tests.tiff_slides import TiffOptions, layout_of, philips_xml, smaller, write_ome, write_philips, write_tiff
from wsi import Region, Slide, SlideError, TileError, open_slide
from wsi.formats.tiff import TiffSlide

IMAGE = tissue_like(1_024, 768)


def whole(slide: Slide, level: int) -> NDArray[np.uint8]:
    size, scale = slide.levels[level], slide.levels[level].downsample
    pixels = slide.read(Region(0, 0, round(size.width * scale), round(size.height * scale)), level)
    return pixels[: size.height, : size.width]


def test_an_ome_tiff_has_its_levels_in_sub_directories_and_its_scale_in_xml(tmp_path):
    levels = [IMAGE, smaller(IMAGE, 2), smaller(IMAGE, 4)]
    path = write_ome(tmp_path / "slide.ome.tif", {"slide": levels}, mpp=0.2523)
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.vendor) == ("tiff", "ome-tiff")
        assert (slide.info.mpp, slide.info.mpp_source) == (0.2523, "ome")
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        for number, truth in enumerate(levels):
            assert np.array_equal(whole(slide, number), truth)
        with tifffile.TiffFile(path) as file:
            assert np.array_equal(whole(slide, 1), file.series[0].levels[1].asarray())


@pytest.mark.parametrize(
    ("stated", "unit", "mpp"),
    [(250, "nm", 0.25), (0.00025, "mm", 0.25), (0.25, "µm", 0.25), (1, "pixel", None), (1, "reference frame", None)],
)
def test_an_ome_pixel_size_is_a_length_in_any_unit_or_none(tmp_path, stated, unit, mpp):
    path = write_ome(tmp_path / "slide.ome.tif", {"slide": [IMAGE]}, mpp=stated, unit=unit)
    with open_slide(path) as slide:
        assert slide.info.mpp == (None if mpp is None else pytest.approx(mpp))


def test_the_largest_ome_series_is_the_slide_and_named_small_ones_are_associated(tmp_path):
    label, macro = tissue_like(96, 80, 1), tissue_like(200, 80, 2)
    path = write_ome(tmp_path / "a.ome.tif", {"label image": [label], "slide": [IMAGE], "Overview": [macro]})
    with open_slide(path) as slide:
        assert slide.info.associated == ("label", "macro")
        assert np.array_equal(slide.associated("label"), label)
        assert np.array_equal(slide.associated("macro"), macro)
        assert np.array_equal(whole(slide, 0), IMAGE)


def _ome_series(path: Path) -> None:
    write_ome(path, {"one": [IMAGE], "two": [IMAGE[:700].copy()]})


def _ome_stack(path: Path) -> None:
    tifffile.imwrite(path, np.stack([IMAGE] * 3), ome=True, photometric="rgb", metadata={"axes": "ZYXS"})


def _ome_channels(path: Path) -> None:
    pixels = np.ascontiguousarray(IMAGE.transpose(2, 0, 1))
    tifffile.imwrite(path, pixels, ome=True, photometric="minisblack", metadata={"axes": "CYX"})


def _ome_bomb(path: Path) -> None:
    text = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><OME><a>&c;</a></OME>'
    tifffile.imwrite(path, IMAGE, description=text, metadata=None, photometric="rgb")


def _ome_without_sizes(path: Path) -> None:
    text = "<OME><Image><Pixels SizeX='9'/></Image></OME>"
    tifffile.imwrite(path, IMAGE, description=text, metadata=None, photometric="rgb")


def _ome_of_another_file(path: Path) -> None:
    write_ome(path, {"slide": [IMAGE]})
    data = path.read_bytes()
    path.write_bytes(data.replace(b'SizeX="1024"', b'SizeX="1025"'))


def _ome_of_two_files(path: Path) -> None:
    names = "".join(f"<TiffData IFD='0'><UUID FileName='{name}.tif'>u</UUID></TiffData>" for name in "ab")
    text = f"<OME><Image><Pixels SizeX='9' SizeY='9' SizeZ='1' SizeC='3' SizeT='1'>{names}</Pixels></Image></OME>"
    tifffile.imwrite(path, IMAGE, description=text, metadata=None, photometric="rgb")


def _stack(path: Path) -> None:
    tifffile.imwrite(path, np.stack([IMAGE] * 3), photometric="rgb", metadata=None)


def _grey_pages(path: Path) -> None:
    tifffile.imwrite(path, np.stack([IMAGE[..., 0]] * 4), photometric="minisblack", metadata=None)


def _five_channels(path: Path) -> None:
    pixels = np.dstack([IMAGE, IMAGE[..., :2]])
    tifffile.imwrite(path, pixels, photometric="rgb", planarconfig="contig", metadata=None)


def _float(path: Path) -> None:
    tifffile.imwrite(path, IMAGE.astype(np.float32), photometric="rgb", metadata=None)


def _palette(path: Path) -> None:
    tifffile.imwrite(path, IMAGE[..., 0], photometric="palette", colormap=np.zeros((3, 256), np.uint16))


def _thumbnail_first(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(smaller(IMAGE, 8), photometric="rgb", metadata=None)
        file.write(IMAGE, photometric="rgb", metadata=None, tile=(256, 256))


def _olympus(path: Path) -> None:
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata=None, extratags=[(33560, 1, 8, b"12345678", True)])


def _turned(path: Path) -> None:
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata=None, extratags=[(274, 3, 1, 6, True)])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_ome_series, "an OME-TIFF of 2 image series"),
        (_ome_stack, "an OME-TIFF with 3 focal planes or times"),
        (_ome_channels, "an OME-TIFF with 3 channels: give channels explicitly"),
        (_ome_bomb, "its XML cannot be read"),
        (_ome_without_sizes, "its OME-XML is incomplete"),
        (_ome_of_another_file, "its OME-XML does not describe the images of this file"),
        (_ome_of_two_files, "one file of an OME-TIFF of 2"),
        (_stack, "a stack of 3 images of one size"),
        (_grey_pages, "a stack of 4 images of one size, channels or focal planes: give channels explicitly"),
        (_five_channels, "5 channels: give channels explicitly"),
        (_float, "32-bit floating-point pixels: give channels explicitly"),
        (_palette, "not 8-bit RGB or grey"),
        (_thumbnail_first, "its first image is striped and not its largest"),
        (_olympus, "Olympus VSI"),
        (_turned, "rows or bits in another order"),
    ],
)
def test_what_is_no_rgb_slide_is_declined_with_the_reason(tmp_path, make, reason):
    path = tmp_path / "file.tif"
    make(path)
    match = TiffSlide.matches(path)
    assert not match.takes
    assert reason in match.why


@pytest.mark.parametrize("compression", ["jpegxl", "lzma", "png", "lerc"])
@pytest.mark.parametrize("tile", [(256, 256), None])
def test_a_codec_of_no_reader_is_named_and_the_remedy_is_conversion(tmp_path, compression, tile):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, compression=compression, tile=tile, photometric="rgb", metadata=None)
    named = compression.replace("xl", "-xl")
    with pytest.raises(SlideError, match=f"its pixels are stored as {named}, not read here; convert it"):
        open_slide(path)


def test_other_colours_than_rgb_are_named_and_the_remedy_is_conversion(tmp_path):
    _palette(tmp_path / "palette.tif")
    cmyk = np.dstack([IMAGE, IMAGE[..., 0]])
    tifffile.imwrite(tmp_path / "CMYK.tif", cmyk, photometric="separated", metadata=None)
    for name in ("palette", "CMYK"):
        with pytest.raises(SlideError, match=f"it is a {name} TIFF; convert it to 8-bit RGB"):
            open_slide(tmp_path / f"{name}.tif")


def test_an_olympus_file_is_told_what_it_is_by_every_reader(tmp_path):
    path = tmp_path / "a.vsi"
    _olympus(path)
    with pytest.raises(SlideError, match=r"channel_tiff declined: Olympus VSI.*; no reader here knows Olympus VSI"):
        open_slide(path)


def test_small_levels_in_strips_count_if_they_show_the_same_picture(tmp_path):
    half, eighth = smaller(IMAGE, 2), smaller(IMAGE, 8)
    thumbnail = np.full((60, 200, 3), 7, np.uint8)
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as file:
        for number, (image, tile) in enumerate([(IMAGE, 256), (half, 256), (eighth, None), (thumbnail, None)]):
            layout = layout_of(image, TiffOptions("lzw", tile, 10))
            scale = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
            file.write(image, **layout, **scale, subfiletype=min(number, 1), metadata=None)
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1, 2, 8]
        assert (slide.info.mpp, slide.info.mpp_source) == (0.25, "tiff")
        assert np.array_equal(whole(slide, 2), eighth)


def test_a_screens_resolution_is_no_pixel_size(tmp_path):
    path = tmp_path / "plain.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata=None, resolution=(96, 96), resolutionunit="INCH")
    with open_slide(path) as slide:
        assert slide.info.mpp is None
        assert slide.info.mpp_problem is not None
        assert "264.583 µm per pixel" in slide.info.mpp_problem


def _qptiff(path: Path, levels: list[NDArray[np.uint8]], others: dict[str, NDArray[np.uint8]]) -> Path:
    """A brightfield QPTIFF as Akoya describes it: full resolution, thumbnail, smaller levels, overview and label."""
    pages = [("FullResolution", levels[0]), ("Thumbnail", others["thumbnail"])]
    pages += [("ReducedResolution", level) for level in levels[1:]]
    pages += [("Overview", others["macro"]), ("Label", others["label"])]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for kind, image in pages:
            large = min(image.shape[:2]) > 200
            xml = (
                f'<?xml version="1.0" encoding="utf-16"?>\n<PerkinElmer-QPI-ImageDescription><ImageType>{kind}'
                "</ImageType><Objective>10x</Objective><ScanProfile><root><ScanResolution><Magnification>20"
                "</Magnification></ScanResolution></root></ScanProfile></PerkinElmer-QPI-ImageDescription>"
            )
            file.write(
                image,
                photometric="rgb",
                compression="jpeg" if large else "lzw",
                tile=(128, 128) if large else None,
                description=xml,
                software="PerkinElmer-QPI",
                resolution=(20_000 * image.shape[1] / levels[0].shape[1],) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(kind != "FullResolution"),
                metadata=None,
            )
    return path


def test_a_brightfield_qptiff_is_a_pyramid_with_its_pages_by_name(tmp_path):
    levels = [IMAGE, smaller(IMAGE, 2), smaller(IMAGE, 8)]
    others = {"thumbnail": smaller(IMAGE, 16), "macro": tissue_like(90, 160, 1), "label": tissue_like(70, 60, 2)}
    path = _qptiff(tmp_path / "a.qptiff", levels, others)
    with open_slide(path) as slide, tifffile.TiffFile(path) as file:
        assert (slide.info.reader, slide.info.vendor, slide.info.codec) == ("tiff", "perkinelmer-qptiff", "jpeg")
        assert (slide.info.mpp, slide.info.mpp_source, slide.info.objective) == (0.5, "tiff", 20)
        stored = [number for number, level in enumerate(slide.levels) if level.stored]
        assert [slide.levels[number].downsample for number in stored] == [1, 2, 8]
        for number, page in zip(stored, (0, 2, 3), strict=True):
            assert np.array_equal(whole(slide, number), file.pages[page].asarray())
        assert slide.info.associated == ("label", "macro", "thumbnail")
        for name, image in others.items():
            assert np.array_equal(slide.associated(name), image)


def test_a_qptiff_of_several_images_in_full_resolution_is_not_taken_for_one(tmp_path, data_dir):
    path = tmp_path / "a.qptiff"
    others = {"thumbnail": smaller(IMAGE, 16), "macro": IMAGE[:90, :160], "label": IMAGE[:70, :60]}
    _qptiff(path, [IMAGE, smaller(IMAGE, 2)], others)
    path.write_bytes(path.read_bytes().replace(b"ReducedResolution<", b"FullResolution   <"))
    for file in (path, data_dir / "slides" / "pathml_small_vectra.qptiff"):
        match = TiffSlide.matches(file)
        assert not match.takes
        assert match.why == "a PerkinElmer QPTIFF that is not one RGB image: give channels explicitly"


DOWNSAMPLES = (1, 2, 4)


def test_a_philips_slide_is_openslides_with_true_level_sizes(tmp_path):
    label = simplejpeg.encode_jpeg(tissue_like(60, 40, 3), 90, "RGB", "444")
    image = tissue_like(128 * 9, 128 * 7)
    path = write_philips(tmp_path / "slide.tiff", image, DOWNSAMPLES, philips_xml(DOWNSAMPLES, 0.00025, label))
    with open_slide(path) as slide, openslide.OpenSlide(path) as peer:
        assert peer.properties["openslide.vendor"] == "philips"
        assert (slide.info.reader, slide.info.vendor, slide.info.objective) == ("tiff", "philips", 40)
        assert slide.info.mpp == pytest.approx(float(peer.properties["openslide.mpp-x"]))
        assert (slide.info.mpp_source, slide.info.scanner) == ("vendor", "UFS Scanner")
        stored = [number for number, level in enumerate(slide.levels) if level.stored]
        assert [(slide.levels[n].width, slide.levels[n].height) for n in stored] == list(peer.level_dimensions)
        assert [slide.levels[n].downsample for n in stored] == list(peer.level_downsamples)
        for at, number in enumerate(stored):
            expected = np.asarray(peer.read_region((0, 0), at, peer.level_dimensions[at]).convert("RGB"))
            assert np.array_equal(whole(slide, number), expected)
        assert slide.info.associated == ("label", "macro")
        for name in ("label", "macro"):
            assert np.array_equal(slide.associated(name), np.asarray(peer.associated_images[name].convert("RGB")))


def test_a_philips_level_is_as_large_as_its_spacing_says(tmp_path):
    image = tissue_like(128 * 5, 128 * 3)
    path = write_philips(tmp_path / "slide.tiff", image, (1, 4), philips_xml((1, 4), 0.00025))
    with open_slide(path) as slide, tifffile.TiffFile(path) as file:
        assert file.pages[1].shape == (128, 256, 3)  # 96 x 160 px padded to whole tiles
        number = next(n for n, level in enumerate(slide.levels) if level.stored and n)
        assert (slide.levels[number].width, slide.levels[number].height) == (160, 96)
        assert (slide.read(Region(636, 0, 40, 16), number)[:, 1:] == 255).all()


def test_unscanned_glass_of_a_philips_slide_is_white_and_a_lost_tile_is_not(tmp_path):
    image = tissue_like(128 * 4, 128 * 4)
    path = write_philips(tmp_path / "slide.tiff", image, (1,), philips_xml((1,), 0.00025))
    with tifffile.TiffFile(path, mode="r+b") as file:
        offsets, counts = file.pages[0].tags[324], file.pages[0].tags[325]
        offsets.overwrite([0, *offsets.value[1:]])
        counts.overwrite([0, *counts.value[1:5], 0, *counts.value[6:]])
    with TiffSlide(path, "asked for") as slide:
        out = np.empty((3, 128, 128, 3), np.uint8)
        assert slide.read_many(np.array([[0, 0], [128, 128], [256, 256]]), 0, out).tolist() == [True, False, True]
        assert (out[0] == 255).all()
        assert not (out[2] == 255).all()


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (philips_xml((1, 2), 0.00025), "1 tiled images, and 2 levels in its XML"),
        (philips_xml((1,), 0.00025, slides=2), "its XML lists 2 slides instead of one"),
        (philips_xml((), 0.00025), "does not give the pixel spacing of each level"),
        (philips_xml((1,), 0.00025)[:-20], "its XML cannot be read"),
    ],
)
def test_a_philips_file_that_contradicts_its_xml_is_declined(tmp_path, xml, reason):
    path = write_philips(tmp_path / "slide.tiff", tissue_like(256, 256), (1,), xml)
    match = TiffSlide.matches(path)
    assert not match.takes
    assert reason in match.why


def test_a_philips_label_that_is_damaged_is_an_error_and_not_absent(tmp_path):
    label = simplejpeg.encode_jpeg(tissue_like(60, 40, 3), 90, "RGB", "444")[:-300]
    path = write_philips(tmp_path / "a.tiff", tissue_like(256, 256), (1,), philips_xml((1,), 0.00025, label))
    with open_slide(path) as slide:
        assert "label" in slide.info.associated
        with pytest.raises(TileError, match="its label image cannot be decoded"):
            slide.associated("label")


def test_philips_levels_that_contradict_their_spacing_are_refused(tmp_path):
    path = write_philips(tmp_path / "a.tiff", tissue_like(512, 512), (1, 4), philips_xml((1, 2), 0.00025))
    with pytest.raises(SlideError, match="contradict their pixel spacings"):
        open_slide(path)


def test_a_generic_pyramid_is_unharmed_by_an_associated_page(tmp_path):
    path = tmp_path / "slide.tif"
    write_tiff(path, [IMAGE, smaller(IMAGE, 2)], TiffOptions("zlib"))
    with tifffile.TiffWriter(path, append=True) as file:
        file.write(tissue_like(80, 60), photometric="rgb", metadata=None)
    with open_slide(path, mpp=0.5) as slide:
        assert len(slide.levels) == 2
        assert np.array_equal(whole(slide, 1), smaller(IMAGE, 2))
