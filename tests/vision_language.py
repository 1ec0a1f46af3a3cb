"""Small vision-language models with random weights, in the layouts of the real ones, and a tokenizer for them."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from embedding import Backbone
from embedding.catalogue.vision_language import VISION_LANGUAGE

ENTRIES = {entry.name: entry for entry in VISION_LANGUAGE}
WORDS = [
    "tumor", "normal", "mucosa", "malignant", "glands", "fat", "histology", "of", "a", "an", "the", "with", "and",
    "tissue", "section", "stained", "slide",
]  # fmt: skip


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with random weights that are nowhere zero or one, so that a swapped or lost tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2 + (0.5 if value.ndim == 1 else 0))
    return network.eval()


def save(network: nn.Module, path: Path, prefix: str = "", **others: torch.Tensor) -> Path:
    """Its tensors, and others, as safetensors."""
    state = {f"{prefix}{name}": value.detach().clone().contiguous() for name, value in network.state_dict().items()}
    save_file(state | others, path)
    return path


def entry(base: str, /, **changes: object) -> Backbone:
    """The entry of that name for pictures of 64 px, of no known sha256."""
    small = {"input_px": 64, "resize_px": 64, "tile_px": 64, "sha256": None}
    return replace(ENTRIES[base], **{**small, **changes})


def tiny_plip(folder: Path) -> tuple[Backbone, nn.Module, Path]:
    """(entry, transformers' model, weights file) in PLIP's layout, 32 numbers a patch, with a tokenizer beside it."""
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(WORDS) + 4, "bos_token_id": 1, "eos_token_id": len(WORDS) + 3, "pad_token_id": 0}
    config = CLIPConfig(
        text_config={**text, **ids, "max_position_embeddings": 16},
        vision_config={**vision, "image_size": 64, "patch_size": 32},
        projection_dim=32,
    )
    model = shaken(CLIPModel(config))
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder / "tokenizer.json", end=len(WORDS) + 3)
    options = {"embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 32}
    backbone = entry("plip", name="tiny-plip", dim=32, variants={"projected": 32, "pool": 64}, options=options)
    return backbone, model, save(model, folder / "model.safetensors")


def write_tokenizer(path: Path, end: int = 2) -> Path:
    """A tokenizer of WORDS: 0 pads, 1 begins a text and `end` ends it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = [number for number in range(2, len(WORDS) + 4) if number != end]
    words = {"<pad>": 0, "<start>": 1, "<end>": end}
    words |= dict(zip(["<unknown>", *WORDS], ids, strict=True))
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", end)]
    )
    tokenizer.save(str(path))
    return path
