"""What stains are normalised to: the reference that ships, as numbers, or a picture's; and the contract of it."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from wsi.errors import SpecError
from wsi.publish import fingerprint

from . import stain_fit
from .spec import StainSpec
from .stain_fit import Basis, Moments, UnfitError, measure

# Measured by `measure` on 480 x 480 px of skin, level 0 of CMU-1-Small-Region.svs from (600, 2400) (OpenSlide's test
# data, CC0-1.0; Carnegie Mellon University, Aperio, 0.499 µm/px): epidermis and dermis without the ink and the keratin
# that lie elsewhere on that slide. It is stained and scanned so dark that pale slides would clip at black if they were
# brought to it; so its optical density is taken at 0.7: grey level I becomes 256 ((I + 1) / 256) ** 0.7 - 1, rounded.
SHIPPED: dict[str, Basis | Moments] = {
    "macenko": Basis(((0.65242, 0.68794, 0.31795), (0.18620, 0.91791, 0.35038)), (1.76334, 1.21046)),
    "vahadane": Basis(((0.62406, 0.69282, 0.36132), (0.25112, 0.83330, 0.49250)), (1.85184, 1.32749)),
    "reinhard": Moments((64.89663, 26.19465, -10.58422), (13.60916, 9.66074, 8.74966)),
}


def reference(spec: StainSpec) -> Basis | Moments:
    """The stains to normalise to, for a method that is not none. Raises SpecError for a picture that has none."""
    if spec.target is None:
        return SHIPPED[spec.method]
    try:
        with Image.open(spec.target) as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        return measure(spec.method, pixels)
    except UnfitError as error:
        raise SpecError(
            spec.target, f"no reference for {spec.method}: {error}", "give a picture of H&E tissue"
        ) from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise SpecError(
            spec.target,
            f"not a picture that can be read ({error})",
            "give a PNG, JPEG or TIFF of at most some 10,000 px",
        ) from None


def stain_contract(spec: StainSpec) -> dict[str, Any] | None:
    """What of the settings determines pixels; None where they are left as they are. A target picture counts by its
    content, whatever its name. Raises SpecError where it cannot be read."""
    if spec.method == "none" and spec.jitter == 0:
        return None
    found: dict[str, Any] = {"method": spec.method, "glass": [stain_fit.CLEAR, stain_fit.GLASS]}
    if spec.method != "none":
        found |= {
            "fitted_on": f"tissue of each slide, {stain_fit.PIXELS:,} pixels of its tiles",
            **stain_fit.PARAMETERS[spec.method],
        }
        found["target"] = _digest(spec)
    if spec.jitter:
        found |= {"jitter": spec.jitter, "seed": spec.seed}
    return found


def _digest(spec: StainSpec) -> str:
    if spec.target is None:
        return f"shipped {fingerprint(SHIPPED[spec.method])}"
    try:
        return hashlib.sha256(Path(spec.target).read_bytes()).hexdigest()
    except OSError as error:
        raise SpecError(spec.target, f"cannot be read ({error.strerror})", "give a PNG, JPEG or TIFF") from None
