"""What a synthetic slide is asked to be: size, stain, scanner, tumour. Invented pixels; nothing here is real data."""

from dataclasses import dataclass

from ..errors import SpecError

OBJECTIVE_20X_MPP = 0.5  # µm per px of a 20x scan


@dataclass(frozen=True, slots=True)
class Stain:
    """How hematoxylin and eosin absorb: optical density in red, green, blue per unit of dye."""

    hematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Scanner:
    """What a scanner does to the picture.

    white    RGB of empty glass
    blur_px  standard deviation of the optical blur at 0.5 µm/px
    noise    standard deviation of the sensor noise in grey levels
    quality  JPEG quality of the tiles
    tile_px  side of the stored tiles
    """

    white: tuple[int, int, int]
    blur_px: float
    noise: float
    quality: int
    tile_px: int


STAINS = {
    "violet": Stain((0.63, 0.72, 0.31), (0.13, 0.88, 0.46)),
    "rose": Stain((0.58, 0.74, 0.38), (0.08, 0.80, 0.34)),
    "blue": Stain((0.74, 0.64, 0.24), (0.16, 0.84, 0.34)),
    "brick": Stain((0.58, 0.73, 0.42), (0.14, 0.80, 0.52)),
    "plum": Stain((0.60, 0.80, 0.40), (0.24, 0.86, 0.42)),
}

SCANNERS = {
    "scanner-1": Scanner((243, 243, 244), 0.75, 1.4, 82, 240),
    "scanner-2": Scanner((248, 246, 248), 0.95, 1.0, 75, 256),
    "scanner-3": Scanner((237, 239, 240), 0.65, 1.9, 85, 256),
    "scanner-4": Scanner((244, 241, 237), 0.85, 1.5, 78, 240),
}


@dataclass(frozen=True)
class SyntheticSpec:
    """One synthetic slide; equal specs give equal files.

    width_px, height_px  level-0 pixels
    mpp                  µm per level-0 pixel
    stain                name in STAINS, or a Stain
    scanner              name in SCANNERS, or a Scanner; its tile_px and quality hold unless given here
    hematoxylin, eosin   amount of each dye, 1 is usual
    nests                number of tumour nests, 0 is a negative slide
    nest_radius_um       usual radius of a nest; each one differs by up to a third
    tissue               share of the slide that is tissue, 0..1
    """

    seed: int = 0
    width_px: int = 3584
    height_px: int = 3584
    mpp: float = OBJECTIVE_20X_MPP
    stain: str | Stain = "violet"
    scanner: str | Scanner = "scanner-1"
    hematoxylin: float = 1.0
    eosin: float = 1.0
    nests: int = 0
    nest_radius_um: float = 150.0
    tissue: float = 0.45
    tile_px: int | None = None
    quality: int | None = None

    def __post_init__(self) -> None:
        limits: tuple[tuple[str, float, float, float], ...] = (
            ("seed", self.seed, 0, 2**63),
            ("width_px", self.width_px, 256, 65_536),
            ("height_px", self.height_px, 256, 65_536),
            ("mpp", self.mpp, 0.1, 2.0),
            ("hematoxylin", self.hematoxylin, 0.2, 2.0),
            ("eosin", self.eosin, 0.2, 2.0),
            ("nests", self.nests, 0, 1000),
            ("nest_radius_um", self.nest_radius_um, 20, 2000),
            ("tissue", self.tissue, 0.0, 0.9),
            ("tile_px", self.tile_px or 256, 64, 1024),
            ("quality", self.quality or 80, 1, 100),
        )
        for name, value, low, high in limits:
            if not low <= value <= high:
                raise SpecError(f"SyntheticSpec.{name}", f"{value} is out of range", f"choose {low:g} to {high:g}")
        if self.tile_px is not None and self.tile_px % 16:
            raise SpecError("SyntheticSpec.tile_px", f"{self.tile_px} is no multiple of 16", "choose 240 or 256")
        for name, chosen, table in (("stain", self.stain, STAINS), ("scanner", self.scanner, SCANNERS)):
            if isinstance(chosen, str) and chosen not in table:
                raise SpecError(f"SyntheticSpec.{name}", f"no {name} {chosen!r}", "choose " + ", ".join(table))

    @property
    def dyes(self) -> Stain:
        return STAINS[self.stain] if isinstance(self.stain, str) else self.stain

    @property
    def camera(self) -> Scanner:
        return SCANNERS[self.scanner] if isinstance(self.scanner, str) else self.scanner

    def px(self, um: float) -> float:
        """Level-0 pixels of a length in µm."""
        return um / self.mpp
