"""Tensors of one layout under the names of another."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

_QKV = re.compile(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)")

Rules = Sequence[tuple[str, str]]


def renamed(state: dict[str, Tensor], rules: Rules, joined: str = "") -> dict[str, Tensor]:
    """Every name after all `rules` (pattern, replacement), in their order.

    joined  where given, queries, keys and values that are apart (`x.self_attn.q_proj.weight` …) become one tensor,
            `x.{joined}weight`: "attn.qkv." is timm's name for it, "attn.in_proj_" torch's
    """
    found: dict[str, Tensor] = {}
    apart: dict[str, dict[str, Tensor]] = {}
    for original, value in state.items():
        name = original
        for pattern, text in rules:
            name = re.sub(pattern, text, name)
        match = _QKV.fullmatch(name) if joined else None
        if match is None:
            found[name] = value
        else:
            apart.setdefault(f"{match[1]}.{joined}{match[3]}", {})[match[2]] = value
    return found | {name: torch.cat([parts[key] for key in "qkv" if key in parts]) for name, parts in apart.items()}
