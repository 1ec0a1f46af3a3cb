"""Patches → vectors. Names that need torch load it when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .backbone import Backbone
from .backbones import BACKBONES, DEFAULT_BACKBONE, find_backbone

if TYPE_CHECKING:
    from .contract import contract_name, make_contract
    from .embed import Embedded, best_device, embed_patches, embed_store
    from .loader import Embedder, build
    from .store import EmbeddingStore, open_embeddings, write_embeddings
    from .weights import find_weights, weights_digest

_HOMES = {
    "Embedder": "loader", "build": "loader", "best_device": "embed", "embed_patches": "embed", "embed_store": "embed",
    "Embedded": "embed", "EmbeddingStore": "store", "contract_name": "contract", "make_contract": "contract",
    "open_embeddings": "store", "write_embeddings": "store", "find_weights": "weights", "weights_digest": "weights",
}  # fmt: skip

__all__ = [
    "BACKBONES", "DEFAULT_BACKBONE", "Backbone", "Embedded", "Embedder", "EmbeddingStore", "best_device", "build",
    "contract_name", "embed_patches", "embed_store", "find_backbone", "find_weights", "make_contract",
    "open_embeddings", "weights_digest", "write_embeddings",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
