"""Tissue by a learned segmenter: the DeepLabV3 of HEST, from its weight file.

Architecture, scale and normalisation are those of HEST's tissue segmenter (Jaume et al. 2024), which TRIDENT runs by
default: torchvision's deeplabv3_resnet50 with two classes, on patches of 512 px at 1 µm per pixel, normalised as for
ImageNet; class 1 is tissue. Its file is deeplabv3_seg_v4.ckpt, whose `state_dict` has the prefix `model.` and an
auxiliary head that is not used. Weights of this architecture saved by others load as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tiling.thumbnail import base_mpp
from wsi.errors import BackboneError
from wsi.resample import pick_level, read_tiles, reader_for
from wsi.slide import Slide

if TYPE_CHECKING:
    import torch

PATCH_PX, PATCH_UM = 512, 1.0
CELL_PX = 8  # pixels of a patch for one of the mask, which is tissue where most of them are
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 8
_SHARED_BYTES = 256 << 20  # of decoded tiles kept for the batches to come


def load_segmenter(weights: Path, device: str = "cpu") -> "torch.nn.Module":
    """The segmenter with `weights`, in evaluation mode on `device`. Nothing is downloaded, no code in the file run.

    Raises BackboneError when the file is missing or holds another architecture.
    """
    import torch
    from torchvision.models.segmentation import deeplabv3_resnet50

    if not weights.is_file():
        raise BackboneError(
            weights, "there is no such weights file", "give HEST's deeplabv3_seg_v4.ckpt, or one like it"
        )
    with torch.device("meta"):
        model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=2, aux_loss=False)
    state = _read_state(weights)
    wanted = set(model.state_dict())
    if missing := sorted(wanted - set(state)) or sorted(set(state) - wanted):
        problem = f"it holds no DeepLabV3-ResNet50 of two classes ({len(missing)} keys differ, as {missing[0]})"
        raise BackboneError(weights, problem, "give HEST's deeplabv3_seg_v4.ckpt, or one like it")
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:  # torch's way of saying that shapes differ
        raise BackboneError(weights, str(error).splitlines()[-1].strip(), "give weights of two classes") from error
    return model.float().eval().requires_grad_(False).to(device)


def segment_tissue(
    slide: Slide, weights: Path, device: str = "cpu", batch: int = BATCH, progress: Callable[[], None] | None = None
) -> NDArray[np.bool_]:
    """Tissue mask of the whole slide by the segmenter in `weights`: bool (rows, cols), which cover the slide's extent.

    One mask pixel is about 8 µm: it is tissue where the mean probability over its 8 x 8 pixels is above 0.5. A patch
    that cannot be read counts as tissue, since it may be. Give the result to `find_tissue` as `outside`. `progress`
    is called after each batch.
    Raises SlideError without scale, SpecError for a slide coarser than 1 µm per pixel, and what `load_segmenter` does.
    """
    model = load_segmenter(weights, device)
    base, span = slide.levels[0], round(PATCH_PX * PATCH_UM / base_mpp(slide))
    level = pick_level(slide.levels, PATCH_UM)
    columns, rows = -(-base.width // span), -(-base.height // span)
    xy = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2) * span
    side = PATCH_PX // CELL_PX
    mask = np.empty((len(xy), side, side), bool)
    parts = [xy[start : start + batch] for start in range(0, len(xy), batch)]
    reader = reader_for(slide, parts, span, level, _SHARED_BYTES)
    for number, part in enumerate(parts):
        patches = np.empty((len(part), PATCH_PX, PATCH_PX, 3), np.uint8)
        ok = read_tiles(reader, part, span, level, patches)
        patches[~ok] = 255
        found = mask[number * batch : number * batch + len(part)]
        found[...] = tissue_probability(model, patches, device) > 0.5
        found[~ok] = True
        if progress is not None:
            progress()
    whole = mask.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
    cell = span / side  # level-0 pixels; the last patches reach over the slide's edge
    return whole[: max(1, round(base.height / cell)), : max(1, round(base.width / cell))]


def tissue_probability(model: "torch.nn.Module", patches: NDArray[np.uint8], device: str) -> NDArray[np.float32]:
    """Mean probability of tissue in cells of 8 x 8 px: patches uint8 (n, 512, 512, 3) → float32 (n, 64, 64)."""
    import torch

    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    with (
        torch.inference_mode(),
        torch.autocast(torch.device(device).type, torch.float16, enabled=device.startswith("cuda")),
    ):
        pixels = torch.from_numpy(patches).to(device).permute(0, 3, 1, 2).float() / 255
        tissue = model((pixels - mean) / std)["out"].float().softmax(dim=1)[:, 1]
        cells = torch.nn.functional.avg_pool2d(tissue[:, None], CELL_PX)[:, 0]
    return np.asarray(cells.cpu().numpy(), np.float32)


def _read_state(path: Path) -> "dict[str, torch.Tensor]":
    """Tensors by torchvision's names; the auxiliary head and Lightning's prefix are left out."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = {name: value.clone() for name, value in load_file(path).items()}  # the file may be written over
    else:
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
    return {name.removeprefix("model."): value for name, value in state.items() if "aux" not in name}
