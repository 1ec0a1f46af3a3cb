"""Write a synthetic slide as an Aperio-like SVS file, with its truth map beside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SpecError
from ..publish import appear_file
from .spec import SyntheticSpec
from .truth import GLASS, TISSUE, TUMOUR, Truth, truth_path, write_truth

REDUCTION = 4  # from level to level
LEVELS = 3
LABEL_PX, MACRO_PX = (387, 463), (1280, 431)  # width, height as Aperio scanners write them


def write_synthetic_slide(path: Path, spec: SyntheticSpec) -> Truth:
    """Write the slide `path` (.svs) and `<stem>.truth.png`; equal specs give equal bytes on one machine.

    The file has levels 1, 4 and 16, a thumbnail, and a label and a macro image that say SYNTHETIC.
    """
    from .layout import plan_layout
    from .paint import Camera, paint

    path = Path(path)
    if path.suffix.lower() not in (".svs", ".tif", ".tiff"):
        raise SpecError(path, "a synthetic slide is a TIFF file", "name it *.svs")
    rng = np.random.default_rng(spec.seed)
    plan = plan_layout(spec, rng)
    truth = _truth(spec, plan.tissue, plan.nest)
    camera = Camera(spec, paint(spec, plan, rng), rng)
    with appear_file(path) as draft:
        _write_tiff(draft, path.stem, spec, camera.tile)
    with appear_file(truth_path(path)) as draft:
        write_truth(draft, truth)
    return truth


def _truth(spec: SyntheticSpec, tissue: NDArray, nest: NDArray) -> Truth:
    from .layout import CELL_PX

    rows, cols = -(-spec.height_px // CELL_PX), -(-spec.width_px // CELL_PX)
    labels = np.where(nest > 0, TUMOUR, np.where(tissue > 0, TISSUE, GLASS)).astype(np.uint8)
    return Truth(labels[:rows, :cols], float(CELL_PX))


class _Level:
    """Pixels of a reduced level, collected while the level below it is written."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.pixels = np.full((height, width, 3), 255, np.uint8)

    def collect(self, x: int, y: int, tile: NDArray[np.uint8]) -> None:
        """Take a tile of the level below, whose corner is (x, y) there."""
        import cv2

        small = cv2.resize(tile, None, fx=1 / REDUCTION, fy=1 / REDUCTION, interpolation=cv2.INTER_AREA)
        top, left = y // REDUCTION, x // REDUCTION
        rows, cols = min(len(small), self.height - top), min(small.shape[1], self.width - left)
        if rows > 0 and cols > 0:
            self.pixels[top : top + rows, left : left + cols] = small[:rows, :cols]

    def tile(self, x: int, y: int, side: int) -> NDArray[np.uint8]:
        block = self.pixels[y : y + side, x : x + side]
        return np.pad(block, ((0, side - block.shape[0]), (0, side - block.shape[1]), (0, 0)), mode="edge")


def _write_tiff(target: Path, name: str, spec: SyntheticSpec, draw: Any) -> None:
    import tifffile

    sizes = [(spec.width_px // REDUCTION**i, spec.height_px // REDUCTION**i) for i in range(LEVELS)]
    upper = [_Level(*size) for size in sizes[1:]]
    side, quality = spec.tile_px or spec.camera.tile_px, spec.quality or spec.camera.quality
    tiled: dict[str, Any] = {
        "dtype": np.uint8, "tile": (side, side), "photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2),
        "metadata": None, "contiguous": False, "software": False,
    }  # fmt: skip
    plain: dict[str, Any] = {"metadata": None, "contiguous": False, "photometric": "rgb", "software": False}

    def tiles(level: int) -> Iterator[bytes]:
        source = draw if level == 0 else upper[level - 1].tile
        width, height = sizes[level]
        for y in range(0, height, side):
            for x in range(0, width, side):
                pixels = source(x, y, side)
                if level < len(upper):
                    upper[level].collect(x, y, pixels)
                yield _jpeg(pixels, quality)

    about = _description(name, spec, side, quality)
    width, height = sizes[0]
    with tifffile.TiffWriter(target) as tiff:
        title = f"{width}x{height} [0,0 {width}x{height}] ({side}x{side}) JPEG/YCC Q={quality}"
        tiff.write(tiles(0), shape=(height, width, 3), description=f"{about[0]}\n{title};{about[1]}", **tiled)
        thumbnail = _fit(upper[0].pixels, (1024, 768))
        size = f"{thumbnail.shape[1]}x{thumbnail.shape[0]}"
        tiff.write(thumbnail, description=f"{about[0]}\n{width}x{height} -> {size} - ;{about[1]}", **plain,
                   compression="jpeg", rowsperstrip=16)  # fmt: skip
        for level in range(1, LEVELS):
            columns, rows = sizes[level]
            title = f"{width}x{height} [0,0 {width}x{height}] ({side}x{side}) -> {columns}x{rows} JPEG/YCC Q={quality}"
            tiff.write(tiles(level), shape=(rows, columns, 3), description=f"{about[0]}\n{title}", **tiled)
        label, macro = _label(name, spec), _macro(name, spec, upper[-1].pixels)
        tiff.write(label, description=f"{about[0]}\nlabel {LABEL_PX[0]}x{LABEL_PX[1]}", subfiletype=1, **plain,
                   compression="lzw", predictor=True)  # fmt: skip
        tiff.write(macro, description=f"{about[0]}\nmacro {MACRO_PX[0]}x{MACRO_PX[1]}", subfiletype=9, **plain,
                   compression="jpeg", rowsperstrip=16)  # fmt: skip


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    import simplejpeg

    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="420"))


def _description(name: str, spec: SyntheticSpec, side: int, quality: int) -> tuple[str, str]:
    """Aperio's first line and its list of properties, both saying that the slide is synthetic."""
    first = "Aperio Image Library (synthetic slide made by slidestream, not a scan)"
    return first, "|".join((
        f"{first} {spec.width_px}x{spec.height_px} ({side}x{side}) JPEG/YCC Q={quality}",
        f"AppMag = {10 / spec.mpp:g}", f"MPP = {spec.mpp:.4f}", f"Filename = {name}",
        "ScanScope ID = SYNTHETIC", f"Seed = {spec.seed}",
    ))  # fmt: skip


def _fit(image: NDArray[np.uint8], box: tuple[int, int]) -> NDArray[np.uint8]:
    """The image, scaled to fit into (width, height)."""
    import cv2

    factor = min(box[0] / image.shape[1], box[1] / image.shape[0])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(
        cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR), np.uint8
    )


def _label(name: str, spec: SyntheticSpec) -> NDArray[np.uint8]:
    import cv2

    image = np.full((LABEL_PX[1], LABEL_PX[0], 3), (250, 249, 244), np.uint8)
    cv2.rectangle(image, (10, 10), (LABEL_PX[0] - 11, LABEL_PX[1] - 11), (60, 60, 70), 2)
    for text, y, size, weight in (
        ("SYNTHETIC", 90, 1.75, 4), ("not a real slide", 140, 1.0, 2), (name[:22], 230, 0.8, 2),
        (f"seed {spec.seed}", 280, 0.8, 2), ("slidestream", 420, 1.0, 2),
    ):  # fmt: skip
        cv2.putText(image, text, (34, y), cv2.FONT_HERSHEY_SIMPLEX, size, (30, 30, 40), weight, cv2.LINE_AA)
    return image


def _macro(name: str, spec: SyntheticSpec, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole glass: label on the left, the tissue as the camera of the scanner would see it."""
    width, height = MACRO_PX
    image = np.full((height, width, 3), (226, 228, 230), np.uint8)
    label = _fit(_label(name, spec), (360, height - 20))
    image[10 : 10 + label.shape[0], 10 : 10 + label.shape[1]] = label
    tissue = _fit(pixels, (width - 480, height - 60))
    top, left = (height - tissue.shape[0]) // 2, 400 + (width - 440 - tissue.shape[1]) // 2
    window = image[top : top + tissue.shape[0], left : left + tissue.shape[1]]
    window[:] = np.minimum(window, tissue)
    return image
