"""What the user asks for when a slide is cut into tiles."""

from dataclasses import dataclass, field

from wsi.errors import SpecError


@dataclass(frozen=True, slots=True)
class TissueSpec:
    """How tissue is told from glass. Areas are µm², so they mean the same on every scanner.

    method         otsu: Otsu's threshold on the colourfulness of a smoothed thumbnail; none: the whole slide counts
    mpp            µm per pixel of the thumbnail the decision is made on
    min_area_um2   smaller pieces are dust and are dropped
    max_hole_um2   smaller holes are filled (lumina, vacuoles); larger ones stay glass
    """

    method: str = "otsu"
    mpp: float = 8.0
    min_area_um2: float = 10_000.0
    max_hole_um2: float = 10_000.0

    def __post_init__(self) -> None:
        if self.method not in ("otsu", "none"):
            raise SpecError("tissue.method", f"{self.method!r} is unknown", "choose otsu or none")
        if not 0.5 <= self.mpp <= 64:
            raise SpecError("tissue.mpp", f"{self.mpp} µm/px is outside 0.5 to 64", "8 suits most slides")
        for name in ("min_area_um2", "max_hole_um2"):
            if not 0 <= getattr(self, name) <= 1e9:
                raise SpecError(f"tissue.{name}", f"{getattr(self, name)} is out of range", "give µm² from 0 to 1e9")


@dataclass(frozen=True, slots=True)
class TileSpec:
    """How a slide is cut into tiles.

    tile_px           side of a patch in pixels, as the backbone will see it before its own resizing
    mpp               µm per pixel of a patch; met within `tolerance`, else by area averaging from the next finer level
    stride_px         distance between tiles in patch pixels; None is tile_px, without overlap
    min_tissue        share of a tile that must be tissue, [0, 1]
    tolerance         relative deviation of mpp that is read without resampling
    max_failed_tiles  share of unreadable tiles above which a slide is failed
    """

    tile_px: int = 256
    mpp: float = 0.5
    stride_px: int | None = None
    min_tissue: float = 0.25
    tolerance: float = 0.01
    max_failed_tiles: float = 0.01
    tissue: TissueSpec = field(default_factory=TissueSpec)

    def __post_init__(self) -> None:
        checks = (
            ("tile_px", self.tile_px, 16 <= self.tile_px <= 8192, "a whole number from 16 to 8192"),
            ("mpp", self.mpp, 0.05 <= self.mpp <= 20, "µm per pixel from 0.05 to 20, such as 0.5"),
            ("stride_px", self.stride_px, self.stride_px is None or self.stride_px >= 1, "at least 1"),
            ("min_tissue", self.min_tissue, 0 <= self.min_tissue <= 1, "a share from 0 to 1"),
            ("tolerance", self.tolerance, 0 <= self.tolerance <= 0.1, "a share from 0 to 0.1"),
            ("max_failed_tiles", self.max_failed_tiles, 0 <= self.max_failed_tiles <= 1, "a share from 0 to 1"),
        )
        for name, value, good, remedy in checks:
            if not good:
                raise SpecError(f"tile.{name}", f"{value} is out of range", f"give {remedy}")

    @property
    def stride(self) -> int:
        """Distance between tiles in patch pixels."""
        return self.stride_px if self.stride_px is not None else self.tile_px
