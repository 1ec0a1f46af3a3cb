"""Slide encoders whose authors publish them as Python code beside the weights: TITAN and PRISM.

The code runs only where the user allows it, from a folder on this machine. How it is called was read in the authors'
model cards, and in tools that use them.
"""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from wsi.errors import BackboneError

from .encoder import SlideEncoder
from .source import require_trust


class Remote(nn.Module):
    """The authors' model, called as they call it: embeddings (n, d) → (dim,)."""

    def __init__(self, arch: str, model: Any):
        super().__init__()
        self.arch, self.model = arch, model

    def forward(self, tiles: Tensor, places: Tensor, span_px: int) -> Tensor:
        if self.arch == "prism":
            return self.model.slide_representations(tiles[None])["image_embedding"][0]
        # a numpy number, as it comes out of the HDF5 attribute that the authors' example reads
        side = np.int64(span_px)
        return self.model.encode_slide_from_patch_features(tiles[None], places[None].to(tiles.device), side)[0]


def load(encoder: SlideEncoder, folder: Path, trusted: bool) -> nn.Module:
    """The authors' model from a folder with its code and weights; nothing is fetched.

    Raises BackboneError where the code is not trusted, or needs packages that are not there.
    """
    require_trust(encoder, trusted, folder)
    try:
        from transformers import AutoModel

        model = AutoModel.from_pretrained(str(folder), trust_remote_code=True, local_files_only=True)
    except ImportError as error:
        lacking = " ".join(str(error).split())
        remedy = "install what it names; transformers comes with the extra `vl`"
        raise BackboneError(encoder.name, f"its authors' code cannot be loaded: {lacking}", remedy) from error
    return Remote(encoder.arch, model)
