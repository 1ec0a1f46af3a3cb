"""A slide's pixels in sRGB, by the ICC profile that its scanner embedded.

Scanners of different makers show one stain in different colours; those that embed a profile say how theirs are meant.
The transform is LittleCMS's (through Pillow), in the profile's own rendering intent.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .errors import SlideError
from .geometry import Level, Region
from .resample import BatchSource, PatchReader, PatchStream
from .slide import Slide, SlideInfo

Take = Callable[[int, NDArray[np.uint8]], None]


def in_srgb(slide: Slide) -> Slide:
    """The same slide with its ICC profile applied to all it reads; itself where it has no profile.

    What was done stands in `info.colour`. Raises SlideError for a profile that is damaged or not of RGB.
    """
    profile = slide.icc_profile()
    return SrgbSlide(slide, _transform(profile, slide.path)) if profile else slide


class SrgbSlide:
    """A slide behind a colour transform. Reads are thread-safe."""

    def __init__(self, slide: Slide, transform: Any):
        self._slide, self._convert = slide, _Converter(transform)
        self.path: Path | str = slide.path
        self.info: SlideInfo = replace(slide.info, colour="srgb")
        self.levels: tuple[Level, ...] = slide.levels

    def read(self, region: Region, level: int) -> NDArray[np.uint8]:
        """See Slide.read."""
        return self._convert(self._slide.read(region, level))

    def read_many(self, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See Slide.read_many."""
        return self._convert.read_many(self._slide, xy, level, out)

    def read_each(self, xy: NDArray[np.int64], side: int, level: int, take: Take) -> NDArray[np.bool_]:
        """See resample.PatchStream."""
        return self._convert.read_each(self._slide, xy, side, level, take)

    def in_batches(self, batches: Sequence[NDArray[np.int64]], side: int, level: int, limit_bytes: int) -> PatchReader:
        """See resample.BatchSource."""
        if not isinstance(self._slide, BatchSource):
            return self
        return _SrgbReader(self._slide.in_batches(batches, side, level, limit_bytes), self._convert)

    def associated(self, name: str) -> NDArray[np.uint8]:
        """See Slide.associated; as stored, since the profile is the slide's."""
        return self._slide.associated(name)

    def icc_profile(self) -> bytes:
        """None any more: the pixels are sRGB."""
        return b""

    def close(self) -> None:
        self._slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _SrgbReader:
    """A reader of announced batches behind a colour transform."""

    def __init__(self, reader: PatchReader, convert: "_Converter"):
        self._reader, self._convert = reader, convert
        self.levels = reader.levels

    def read_many(self, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return self._convert.read_many(self._reader, xy, level, out)

    def read_each(self, xy: NDArray[np.int64], side: int, level: int, take: Take) -> NDArray[np.bool_]:
        return self._convert.read_each(self._reader, xy, side, level, take)


class _Converter:
    """Applies one transform to arrays of pixels."""

    def __init__(self, transform: Any):
        self._transform = transform

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(pixels).reshape(-1, pixels.shape[-2], 3))
        return np.asarray(self._transform.apply(image)).reshape(pixels.shape)

    def read_many(
        self, reader: PatchReader, xy: NDArray[np.int64], level: int, out: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        ok = reader.read_many(xy, level, out)
        for number in range(len(out)):  # patch by patch: while in the processor's cache, and without a second batch
            out[number] = self(out[number])
        return ok

    def read_each(
        self, reader: PatchReader, xy: NDArray[np.int64], side: int, level: int, take: Take
    ) -> NDArray[np.bool_]:
        if isinstance(reader, PatchStream):
            return reader.read_each(xy, side, level, lambda number, pixels: take(number, self(pixels)))
        ok = np.empty(len(xy), np.bool_)
        work = np.empty((1, side, side, 3), np.uint8)
        for number in range(len(xy)):
            ok[number] = reader.read_many(xy[number : number + 1], level, work)[0]
            if ok[number]:
                take(number, self(work[0]))
        return ok


def _transform(profile: bytes, path: Path | str) -> Any:
    from PIL import ImageCms

    remedy = "leave the colours as stored: icc `none`"
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = embedded.profile.xcolor_space.strip()
        if space != "RGB":
            raise SlideError(path, f"its ICC profile is for {space}, not RGB", remedy)
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(embedded))
        return ImageCms.buildTransform(embedded, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent)
    except (ImageCms.PyCMSError, OSError) as error:
        raise SlideError(path, f"its ICC profile cannot be used ({error})", remedy) from error
