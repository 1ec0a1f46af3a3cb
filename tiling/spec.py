"""What the user asks for when a slide is cut into tiles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wsi.channels import Channels
from wsi.errors import SpecError

TISSUE_METHODS = ("otsu", "hsv", "texture", "fluorescence", "learned", "mask", "none")
FLAGS = ("pen", "blur", "fold", "dark", "bubble")


@dataclass(frozen=True, slots=True)
class TissueSpec:
    """How tissue is told from glass. Areas are µm², so they mean the same on every scanner.

    method         otsu: Otsu's threshold on the colourfulness of a smoothed thumbnail; hsv: saturation, as CLAM does;
                   texture: local variation, for pale fat tissue; fluorescence: bright on dark; learned: a segmentation
                   model, `weights`; mask: a mask image or regions from outside, `mask`; none: the whole slide counts
    mpp            µm per pixel of the thumbnail the decision is made on
    min_area_um2   smaller pieces are dust and are dropped; None: 10,000, and CLAM's 1,638,400 with hsv
    max_hole_um2   smaller holes are filled (lumina, vacuoles); larger ones stay glass; None: 10,000, and CLAM's 262,144
                   with hsv
    pen            find pen marks (blue, green, red, black) and take them out of the tissue, unless it counts as given
                   (none, mask); switch it off for blue and green stains (trichrome, Alcian blue)
    mask           for method mask: a mask image (PNG, TIFF, NPY) or regions (GeoJSON, ASAP XML, ImageScope XML), or a
                   folder with one such file a slide named by its slide_id
    weights        for method learned: the model's weight file
    """

    method: str = "otsu"
    mpp: float = 8.0
    min_area_um2: float | None = None
    max_hole_um2: float | None = None
    pen: bool = True
    mask: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.method not in TISSUE_METHODS:
            raise SpecError(
                "tissue.method", f"{self.method!r} is unknown", f"choose one of {', '.join(TISSUE_METHODS)}"
            )
        if not 0.5 <= self.mpp <= 64:
            raise SpecError("tissue.mpp", f"{self.mpp} µm/px is outside 0.5 to 64", "8 suits most slides")
        for name in ("min_area_um2", "max_hole_um2"):
            area = getattr(self, name)
            if area is not None and not 0 <= area <= 1e9:
                raise SpecError(f"tissue.{name}", f"{area} is out of range", "give µm² from 0 to 1e9")
        for method, name in (("mask", "mask"), ("learned", "weights")):
            if self.method == method and getattr(self, name) is None:
                raise SpecError(f"tissue.{name}", f"tissue method {method!r} needs it", "name the file")


@dataclass(frozen=True, slots=True)
class QualitySpec:
    """What is looked at in every tile, and which tiles are left out for it.

    measure    look at all; off saves reading the slide at `blur_mpp`
    blur_mpp   µm per pixel at which sharpness (variance of the Laplacian of grey) is measured
    min_sharpness   below it a tile is flagged blur; 80 finds a Gaussian blur with a sigma of 2 µm at 1 µm per pixel
    max_share  share of a tile under pen, fold, dark or bubble above which it is flagged
    exclude    flags whose tiles are left out of the grid: pen, blur, fold, dark, bubble
    """

    measure: bool = True
    blur_mpp: float = 1.0
    min_sharpness: float = 80.0
    max_share: float = 0.5
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.exclude) - set(FLAGS):
            raise SpecError("quality.exclude", f"{sorted(unknown)} unknown", f"choose of {', '.join(FLAGS)}")
        if self.exclude and not self.measure:
            raise SpecError("quality.exclude", "nothing is measured", "leave `measure` on")
        if not 0.5 <= self.blur_mpp <= 8:
            raise SpecError("quality.blur_mpp", f"{self.blur_mpp} µm/px is outside 0.5 to 8", "1 suits most slides")
        if not 0 <= self.max_share <= 1 or self.min_sharpness < 0:
            raise SpecError("quality", "a limit is out of range", "give max_share 0 to 1 and min_sharpness from 0")


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """Drawn regions that tiles must lie in, or must not: QuPath GeoJSON, ASAP XML or ImageScope XML.

    include, exclude   a file, or a folder with one file a slide named by its slide_id; None: no such limit
    ..._classes        names of the classes that count; empty: all
    min_share          share of a tile inside the include regions (and not in the exclude regions) that it needs
    """

    include: str | None = None
    include_classes: tuple[str, ...] = ()
    exclude: str | None = None
    exclude_classes: tuple[str, ...] = ()
    min_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.min_share <= 1:
            raise SpecError("regions.min_share", f"{self.min_share} is out of range", "give a share above 0, up to 1")
        for name, place in (("include", self.include), ("exclude", self.exclude)):
            if place is None and getattr(self, f"{name}_classes"):
                problem = f"classes are chosen, but `{name}` names no file they could be in"
                raise SpecError(f"regions.{name}_classes", problem, f"name the file or folder of regions as `{name}`")


@dataclass(frozen=True, slots=True)
class TileSpec:
    """How a slide is cut into tiles.

    tile_px           side of a patch in pixels, as the backbone will see it before its own resizing
    mpp               µm per pixel of a patch; met within `tolerance`, else by area averaging from the next finer level
    stride_px         distance between tiles in patch pixels; None is tile_px, without overlap
    min_tissue        share of a tile that must be tissue, [0, 1]
    tolerance         relative deviation of mpp that is read without resampling
    max_failed_tiles  share of unreadable tiles above which a slide is failed
    max_tiles, seed   at most so many tiles a slide, drawn with this seed; None: all
    cheap_levels      use pyramid levels that the decoder makes (JPEG at 1/2, 1/4, 1/8; JPEG 2000 at lower resolution):
                      faster than decoding all and averaging, and slightly different pixels
    icc               none: pixels as stored; srgb: the slide's embedded ICC profile applied
    channels          how fluorescence or 16-bit slides are shown, such as DAPI=0000FF:100-4000; None for RGB slides
    """

    tile_px: int = 256
    mpp: float = 0.5
    stride_px: int | None = None
    min_tissue: float = 0.25
    tolerance: float = 0.01
    max_failed_tiles: float = 0.01
    max_tiles: int | None = None
    seed: int = 0
    cheap_levels: bool = True
    icc: str = "none"
    channels: str | None = None
    tissue: TissueSpec = field(default_factory=TissueSpec)
    quality: QualitySpec = field(default_factory=QualitySpec)
    regions: RegionSpec = field(default_factory=RegionSpec)

    def __post_init__(self) -> None:
        checks = (
            ("tile_px", self.tile_px, 16 <= self.tile_px <= 8192, "a whole number from 16 to 8192"),
            ("mpp", self.mpp, 0.05 <= self.mpp <= 20, "µm per pixel from 0.05 to 20, such as 0.5"),
            ("stride_px", self.stride_px, self.stride_px is None or self.stride_px >= 1, "at least 1"),
            ("min_tissue", self.min_tissue, 0 <= self.min_tissue <= 1, "a share from 0 to 1"),
            ("tolerance", self.tolerance, 0 <= self.tolerance <= 0.1, "a share from 0 to 0.1"),
            ("max_failed_tiles", self.max_failed_tiles, 0 <= self.max_failed_tiles <= 1, "a share from 0 to 1"),
            ("max_tiles", self.max_tiles, self.max_tiles is None or self.max_tiles >= 1, "at least 1"),
            ("seed", self.seed, self.seed >= 0, "a whole number from 0"),
            ("icc", self.icc, self.icc in ("none", "srgb"), "none or srgb"),
        )
        for name, value, good, remedy in checks:
            if not good:
                raise SpecError(f"tile.{name}", f"{value} is out of range", f"give {remedy}")
        if self.channels is not None:
            Channels.parse(self.channels)  # refuses what is no choice of channels

    @property
    def stride(self) -> int:
        """Distance between tiles in patch pixels."""
        return self.stride_px if self.stride_px is not None else self.tile_px

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "TileSpec":
        """The spec that `dataclasses.asdict` and JSON made plain."""
        parts = {"tissue": TissueSpec, "quality": QualitySpec, "regions": RegionSpec}
        plain = {name: part(**_tuples(values[name])) for name, part in parts.items() if name in values}
        return cls(**{**values, **plain})


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
