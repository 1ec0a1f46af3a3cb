"""A slide encoder's entry and its weights → a model from the embeddings of a slide's tiles to its vector."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsi.errors import BackboneError, SpecError

from ..loader import compare, create_unfilled, fill
from ..weights import read_state
from . import remote
from .encoder import SlideEncoder

# a module has create(encoder) -> network, rename(state) -> state and UNUSED, a regular expression of the authors'
# tensors that are not needed. A network has forward(tiles (n, d), places int64 (n, 2), span_px) -> (dim,)
ARCHITECTURES = {"mean": "mean", "longnet": "longnet", "chief": "gated", "madeleine": "gated", "feather": "gated"}


class SlideModel:
    """A slide encoder on its device, ready to encode."""

    def __init__(self, encoder: SlideEncoder, network: nn.Module, device: str, precision: str):
        self.encoder, self.device, self.precision = encoder, device, precision
        self.network = network.eval().requires_grad_(False).to(device)

    def encode(
        self, tiles: NDArray[Any], xy: NDArray[np.int64], span_px: int, contract: Mapping[str, Any]
    ) -> NDArray[np.float32]:
        """One vector (dim,) of a slide.

        tiles     (n, d), n ≥ 1, the embeddings of its readable tiles; xy (n, 2), their corners in level-0 pixels
        span_px   side of a tile in level-0 pixels
        contract  of the embeddings: it tells the tiles' scale
        Tiles are put in order, row by row, so that the order they are stored in does not matter.
        Raises BackboneError where the places are not what the encoder can take, or the vector is not finite.
        """
        order = np.lexsort((xy[:, 0], xy[:, 1]))
        places = torch.from_numpy(tile_places(self.encoder, xy[order], span_px, contract))
        rows = torch.from_numpy(tiles[order].astype(np.float32)).to(self.device)
        with torch.inference_mode(), self._autocast():
            vector = self.network(rows, places, span_px).float().cpu().numpy()
        wanted = self.encoder.dim or tiles.shape[1]
        if vector.shape != (wanted,):
            raise BackboneError(
                self.encoder.name, f"its vector has shape {vector.shape}, not ({wanted},)", "report this"
            )
        if not np.isfinite(vector).all():
            raise BackboneError(
                self.encoder.name, f"its vector is not finite in {self.precision}", "try --precision fp32"
            )
        return np.asarray(vector, np.float32)

    def _autocast(self) -> AbstractContextManager[Any]:
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.precision)
        return nullcontext() if half is None else torch.autocast(torch.device(self.device).type, half)


def build_encoder(
    encoder: SlideEncoder, weights: Path | None, device: str = "cpu", precision: str = "fp32", trusted: bool = False
) -> SlideModel:
    """The encoder, ready to encode.

    weights    its file, or its folder where it comes with code; None leaves it unfilled, which only `mean` and a test
               of shapes want
    precision  fp32, bf16 or fp16
    trusted    whether code that comes with the weights may run
    Raises BackboneError when the weights do not fit exactly, or code would have to run that is not trusted.
    """
    if encoder.remote_code:
        if weights is None:
            raise BackboneError(encoder.name, "there is no network without its authors' files", "give --weights")
        return SlideModel(encoder, remote.load(encoder, weights, trusted), device, precision)
    module = import_module(f".{ARCHITECTURES[encoder.arch]}", __package__)
    if weights is None:
        with torch.device(device):
            return SlideModel(encoder, module.create(encoder), device, precision)
    network = create_unfilled(lambda: module.create(encoder))
    fill(network, module.rename(read_state(weights)), module.UNUSED, encoder.name, weights)
    return SlideModel(encoder, network, device, precision)


def check_encoder(encoder: SlideEncoder, weights: Path) -> None:
    """Compare a weights file with the network of an encoder without code: names and shapes of its tensors. Raises
    BackboneError, naming which, unless they fit exactly.
    """
    module = import_module(f".{ARCHITECTURES[encoder.arch]}", __package__)
    with torch.device("meta"):
        network = module.create(encoder)
    state = module.rename(read_state(weights, mapped=True))
    compare(network.state_dict(), state, module.UNUSED, encoder.name, weights)


def choose_precision(encoder: SlideEncoder, wanted: str, device: str) -> str:
    """fp32, bf16 or fp16: what `wanted` means on this device; auto is the entry's own on a GPU, and fp32 elsewhere."""
    if wanted == "auto":
        return encoder.precision if device.startswith("cuda") else "fp32"
    if wanted == "fp16" and device == "cpu":
        raise SpecError("encode.precision", "a CPU does not compute in fp16", "choose fp32 or bf16")
    return wanted


def tile_places(
    encoder: SlideEncoder, xy: NDArray[np.int64], span_px: int, contract: Mapping[str, Any]
) -> NDArray[np.int64]:
    """Where tiles are, as the encoder is told: int64 (n, 2), level-0 pixels, or columns and rows of a grid.

    Raises BackboneError for overlapping tiles where the encoder lays them out on a grid itself, and for tiles beyond
    the grid it knows.
    """
    if encoder.coordinates == "grid":
        # whole numbers where tiles are its authors': their own rule divides pixels at 0.5 µm by 256, which falls short
        # of a whole number wherever a tile is a fraction of a pixel smaller
        assert encoder.tile_px is not None
        side_px = span_px * (encoder.tile_px * encoder.mpp[0]) / (contract["tile_px"] * contract["mpp"])
        cells = np.floor(xy / side_px).astype(np.int64)
        if cells.min() < 0 or cells.max() >= encoder.options["places"]:
            limit = encoder.options["places"] * encoder.tile_px * encoder.mpp[0] / 1000
            raise BackboneError(encoder.name, f"tiles lie beyond the {limit:g} mm it knows", "check the slide's scale")
        return cells
    if encoder.coordinates == "level0":
        shared = len(xy) - len(np.unique((xy - xy.min(0)) // span_px, axis=0))
        if shared:
            raise BackboneError(
                encoder.name, f"{shared} tiles overlap others, but it lays them out on a grid", "tile without overlap"
            )
    return xy
