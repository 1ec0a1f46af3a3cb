"""Stain normalisation and stain jitter of patches, on the device they are on; fitted once a slide.

Per-image normalisation makes the same tissue look different in neighbouring patches, and fails on glass. Here a slide
has one fit, and a patch is changed pixel by pixel: all patches of a batch at once, and the same whatever batch they
are in. Glass is left as it is, by all methods.
"""

import logging
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .spec import StainSpec
from .stain_fit import CLEAR, GLASS, I0, Basis, Moments, UnfitError, measure
from .stain_target import reference, stain_contract

__all__ = ["StainTransform", "fit_stain", "needs_stain", "stain_contract"]

logger = logging.getLogger(__name__)

# Haematoxylin, eosin and DAB in optical density of R, G, B (Ruifrok and Johnston 2001): three dyes span all colours, so
# that jitter loses nothing and needs no fit.
HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
# Linear sRGB → CIE XYZ relative to white D65, and XYZ's cube roots → Lab, as in OpenCV and scikit-image.
XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)
LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))  # L is 16 less


def needs_stain(spec: StainSpec) -> bool:
    """Whether pixels are changed at all."""
    return spec.method != "none" or spec.jitter > 0


def fit_stain(spec: StainSpec, tissue: NDArray[np.uint8]) -> "StainTransform":
    """The transform of a slide whose tissue has the RGB pixels (m, 3), at the scale of its patches.

    At that scale, as a thumbnail mixes nuclei with what lies around them: amounts fitted on one are too small by half.

    Where they have no stains to be found the colours are left as they are (but for jitter) and a warning says why; it
    is kept as `problem`. Raises SpecError where the target picture cannot be used: that is no fault of a slide.
    """
    if spec.method == "none":
        return StainTransform(spec)
    target = reference(spec)
    try:
        return StainTransform(spec, measure(spec.method, tissue), target)
    except UnfitError as error:
        logger.warning("stain: %s fits no stains, so the slide keeps its colours: %s", spec.method, error)
        return StainTransform(spec, problem=str(error))


class StainTransform(nn.Module):
    """Grey levels (n, 3, h, w) and places (n,) → the same shape, in whole grey levels, as if stained like the target.

    Macenko keeps least-squares amounts of two dyes, as the paper and torchstain do; Vahadane those that are not
    negative; both scale them to the target's and mix them in its dyes. Reinhard moves mean and spread of CIE Lab.
    `fitted` is False where the slide's stains were not found, and `problem` says why.
    """

    glass: Tensor

    def __init__(
        self,
        spec: StainSpec,
        source: Basis | Moments | None = None,
        target: Basis | Moments | None = None,
        problem: str = "",
    ):
        super().__init__()
        self.spec, self.problem = spec, problem
        self.fitted = not problem
        self.method = spec.method if source is not None else "none"
        if isinstance(source, Basis) and isinstance(target, Basis):
            self._keep_dyes(source, target)
        elif isinstance(source, Moments) and isinstance(target, Moments):
            self._keep_moments(source, target)
        if spec.jitter:
            unit = np.array(HED) / np.linalg.norm(HED, axis=1, keepdims=True)
            self._keep("hed", unit.T)
            self._keep("unmixed", np.linalg.inv(unit.T))

    def forward(self, pixels: Tensor, places: Tensor) -> Tensor:
        """pixels float (n, 3, h, w) of grey levels 0 to 255; places int64 (n,), the patches' indices in the grid."""
        if self.method == "none" and not self.spec.jitter:
            return pixels
        given = pixels.float()
        changed = given
        if self.method == "reinhard":
            changed = self._reinhard(given)
        elif self.method != "none":
            changed = self._restain(given)
        if self.spec.jitter:
            changed = self._jittered(changed, places)
        tissue = given.amin(dim=1, keepdim=True).mul_(-1).add_(GLASS).mul_(1 / (GLASS - CLEAR)).clamp_(0, 1)
        return torch.lerp(given, changed.clamp_(0, 255), tissue).round_()

    def _keep(self, name: str, values: NDArray[np.float64]) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def _keep_dyes(self, source: Basis, target: Basis) -> None:
        dyes, scale = np.array(source.dyes), np.array(target.most) / np.array(source.most)
        mixed = np.array(target.dyes).T * scale  # (3, 2)
        if self.method == "macenko":
            self._keep("restain", mixed @ np.linalg.pinv(dyes.T))  # amounts are linear: (3, 3) does it all
        else:
            overlap = float(dyes[0] @ dyes[1])
            self._keep("along", dyes)
            self._keep("free", np.array([[1, -overlap], [-overlap, 1]]) / (1 - overlap**2))
            self._keep("mixed", mixed)

    def _keep_moments(self, source: Moments, target: Moments) -> None:
        lab, scale = np.array(LAB), np.array(target.std) / np.array(source.std)
        lift = np.array([16.0, 0, 0])  # L's 16, as the mean is of L and the matrix gives L + 16
        inverse, xyz = np.linalg.inv(lab), np.array(XYZ) / np.array(WHITE)[:, None]
        self._keep("xyz", xyz)
        self._keep("move", inverse @ (scale[:, None] * lab))
        self._keep("shift", inverse @ (np.array(target.mean) + lift - scale * (np.array(source.mean) + lift)))
        self._keep("rgb", np.linalg.inv(xyz))
        level = np.arange(256) / 255
        self._keep("linear", np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92))

    def _restain(self, pixels: Tensor) -> Tensor:
        white = I0[self.method]
        density = pixels.add(1).log_().neg_().add_(math.log(white))
        if self.method == "macenko":  # without taking the 1 off again: as in torchstain and the authors' own code
            return _mix(self.get_buffer("restain"), density).neg_().exp_().mul_(white)
        along = _mix(self.get_buffer("along"), density.clamp_(min=0))
        free = _mix(self.get_buffer("free"), along)
        amounts = torch.where(free.flip(1) < 0, along, free).clamp_(min=0)
        return _mix(self.get_buffer("mixed"), amounts).neg_().exp_().mul_(white).sub_(1)

    def _reinhard(self, pixels: Tensor) -> Tensor:
        linear = self.get_buffer("linear").index_select(0, pixels.round().int().flatten()).view(pixels.shape)
        # Each curve is a line up to a knee, then a power; as sums of two clamped pieces they cost half of a choice.
        light = _mix(self.get_buffer("xyz"), linear)
        root = _power(light.clamp(min=0.008856), 1 / 3).add_(light.sub_(0.008856).clamp_(max=0), alpha=7.787)
        root = _mix(self.get_buffer("move"), root).add_(self.get_buffer("shift").view(1, 3, 1, 1))
        light = root.clamp(min=0.2068966).pow_(3).add_(root.sub_(0.2068966).clamp_(max=0), alpha=1 / 7.787)
        linear = _mix(self.get_buffer("rgb"), light).clamp_(0, 1)
        grey = _power(linear.clamp(min=0.0031308), 1 / 2.4).mul_(1.055).sub_(0.055)
        return grey.add_(linear.sub_(0.0031308).clamp_(max=0), alpha=12.92).mul_(255)

    def _jittered(self, pixels: Tensor, places: Tensor) -> Tensor:
        """Each dye's amount c becomes c × (1 + u) + v, with u and v drawn for the patch from ± jitter."""
        drawn = draws(self.spec.seed, places.to(pixels.device), 6) * self.spec.jitter  # (n, 6)
        hed, unmixed = self.get_buffer("hed"), self.get_buffer("unmixed")
        factors, extra = 1 + drawn[:, None, :3], drawn[:, None, 3:]
        matrix = ((hed * factors)[..., None] * unmixed).sum(dim=2)  # (n, 3, 3)
        offset = (hed * extra).sum(dim=2)  # (n, 3)
        density = pixels.clamp(0, 255).add_(1).log_().neg_().add_(math.log(256))
        return _mix(matrix, density).add_(offset[..., None, None]).neg_().exp_().mul_(256).sub_(1)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiler may assume that whole numbers do not wrap
def draws(seed: int, places: Tensor, count: int) -> Tensor:
    """float32 (n, count) in [-1, 1), evenly spread: a function of seed, place and column alone (splitmix64).

    Whole numbers that wrap are the same on every device, and no generator has a state that a batch's order would move.
    """
    columns = torch.arange(count, device=places.device)
    # full, not tensor: that would have the host wait for the device, at every batch
    start = torch.full((), seed % 2**63, dtype=torch.int64, device=places.device)
    state = places[:, None] * count + columns + _scrambled(start)
    return (_scrambled(state) >> 40 & 0xFFFFFF).float() * 2.0**-23 - 1


def _scrambled(state: Tensor) -> Tensor:
    """Steele et al. 2014, in int64: the shift brings the sign in, which the mask takes off."""
    state = (state + 1) * -0x61C8864680B583EB
    state = (state ^ (state >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    state = (state ^ (state >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return state ^ (state >> 31 & (1 << 33) - 1)


def _power(values: Tensor, exponent: float) -> Tensor:
    """values ≥ 0 to a power: a third of the time of torch's own on a CPU, right to a millionth."""
    return values.log().mul_(exponent).exp_()


def _mix(matrix: Tensor, values: Tensor) -> Tensor:
    """(k, c) or (n, k, c) times (n, c, h, w) over c. Not a product of matrices, which a GPU may round to ten bits."""
    columns = matrix.expand(len(values), *matrix.shape[-2:])[..., None, None]  # (n, k, c, 1, 1)
    total = columns[:, :, 0] * values[:, 0:1]
    for channel in range(1, matrix.shape[-1]):
        total.addcmul_(columns[:, :, channel], values[:, channel : channel + 1])
    return total
