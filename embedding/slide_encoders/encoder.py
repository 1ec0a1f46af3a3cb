"""A slide encoder as data: what makes one vector of the embeddings of a slide's tiles, and what it needs of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SlideEncoder:
    """One way from the embeddings of a slide's tiles to one vector.

    arch           a key of architectures.ARCHITECTURES; `options` are its sizes
    weights        hf-hub:OWNER/NAME (with `revision` and `file`); file:WHERE for weights that their authors publish
                   elsewhere: they are given with --weights; none: where there are none
    sha256         of the authors' weights file, where it is known: another file is then refused
    dim            length of the vector; None where it is that of the embeddings
    backbone       name and
    variant        pooling of the embeddings it was trained on, None for the backbone's own; backbone None: any
    tile_dim       length of those embeddings
    tile_px, mpp   how its authors cut tiles: pixels and µm per pixel
    coordinates    what it is told of where tiles are: none; grid: column and row of the tile, counted in its authors'
                   tiles; level0: level-0 pixels, with a tile's side in them
    precision      what its authors run it in
    gated          the weights need an acceptance on the hub
    remote_code    the network is Python code that comes with the weights, and runs only where that is allowed
    notes          where published uses of the model differ, and what was chosen
    """

    name: str
    arch: str
    weights: str
    dim: int | None
    licence: str
    paper: str
    backbone: str | None = None
    variant: str | None = None
    tile_dim: int | None = None
    tile_px: int | None = None
    mpp: tuple[float, ...] = ()
    coordinates: str = "none"
    precision: str = "fp32"
    gated: bool = False
    remote_code: bool = False
    revision: str | None = None
    file: str | None = None
    sha256: str | None = None
    notes: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.name, self.weights, self.revision))
