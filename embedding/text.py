"""Text towers: prompts → embeddings in the space of a backbone's variant `projected`.

A tower is read from the same file as the image tower. Which one it is, and its sizes, are told by the tensors: CONCH's
(CoCa's text transformer, from open_clip), transformers' CLIP (PLIP) or BERT within open_clip (BiomedCLIP). Heads are
64 wide in all of them. The tokenizer is a file `tokenizer.json` beside the weights, or CONCH's by its own name.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wsi.errors import BackboneError
from wsi.publish import fingerprint

from .backbone import Backbone
from .hub import Wanted, find_file, is_offline, snapshot_root
from .loader import fill
from .networks.renaming import renamed
from .weights import read_state, weights_digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HEAD_WIDTH = 64
INSTALL = 'pip install "slidestream[vl]"'
TOKENIZERS = ("tokenizer.json", "conch_byte_level_bpe_uncased.json")
PROMPTS_AT_ONCE = 64
BERT_TOKENS = 256  # of BiomedCLIP's configuration; BERT itself has positions for more
_CLIP = (
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


@dataclass(frozen=True)
class TextTower:
    """A text tower, ready.

    network      token ids int64 (n, t), 0 where a prompt has ended → float32 (n, d)
    length       of the longest prompt that it reads, in tokens; what is over is cut off
    logit_scale  what the cosine of a patch and a prompt is multiplied with before a softmax
    """

    network: nn.Module
    tokenizer: "Tokenizer"
    length: int
    logit_scale: float
    device: str = "cpu"

    def embed(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Prompts → float32 (n, d), each of unit length."""
        self.tokenizer.enable_truncation(self.length)
        self.tokenizer.enable_padding(pad_id=0, length=self.length)
        parts = []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            some = list(prompts[start : start + PROMPTS_AT_ONCE])
            ids = torch.tensor([line.ids for line in self.tokenizer.encode_batch(some)], device=self.device)
            with torch.inference_mode():
                parts.append(functional.normalize(self.network(ids).float(), dim=-1).cpu())
        return torch.cat(parts).numpy()


def text_embeddings(
    backbone: Backbone, weights: Path, prompts: Sequence[str], device: str = "cpu"
) -> NDArray[np.float32]:
    """Prompts → float32 (n, d) of unit length, in the space of the backbone's variant `projected`."""
    return load_text_tower(backbone, weights, device).embed(prompts)


def load_text_tower(backbone: Backbone, weights: Path, device: str = "cpu", offline: bool = False) -> TextTower:
    """The text tower within a backbone's weights.

    Raises BackboneError when the file has none, when its tensors do not fit, and when the tokenizer is not beside it.
    """
    state = read_state(weights)
    tokenizer = tokenizer_file(backbone, weights, offline)
    try:
        network, text, length = _tower_in(state, backbone, weights)
        scale = float(state["logit_scale"].float().exp())
    except KeyError as error:
        raise BackboneError(
            weights, f"it lacks the tensor {error}, which prompts need", "give the right file"
        ) from error
    fill(network, text, r"(transformer\.pooler\.|.*position_ids$)", f"the text tower of {backbone.name}", weights)
    return TextTower(network.eval().to(device), _read_tokenizer(tokenizer), length, scale, device)


def _tower_in(state: dict[str, Tensor], backbone: Backbone, weights: Path) -> tuple[nn.Module, dict[str, Tensor], int]:
    """The network that the tensors are of, not yet filled; its tensors under its own names; its longest prompt."""
    text = {name.removeprefix("text."): value for name, value in state.items() if name.startswith("text.")}
    if "cls_emb" in text:
        return TextTransformer(text, nn.GELU()), text, len(text["positional_embedding"]) - 1
    if "transformer.embeddings.word_embeddings.weight" in text:
        return BertTower(text), text, BERT_TOKENS
    text = {name: value for name, value in state.items() if name.startswith(("text_model.", "text_projection."))}
    if not text:
        raise BackboneError(weights, "it holds no text tower", "give the weights of conch, biomedclip or plip")
    text = renamed(text, _CLIP, "attn.in_proj_")
    text["text_projection"] = text["text_projection"].T
    activation = QuickGelu() if "quickgelu" in backbone.arch else nn.GELU()
    return TextTransformer(text, activation), text, len(text["positional_embedding"])


class TextTransformer(nn.Module):
    """CLIP's text transformer: token ids (n, t) → (n, d). Sizes are those of the tensors in `state`, under
    open_clip's names.

    CLIP reads the embedding off the token of the highest id, which ends the text. CONCH appends a class token that
    sees the text alone; its authors' mask is one place too far to the right, so it sees the first padding, too, and
    not itself, and so it must stay.
    """

    def __init__(self, state: dict[str, Tensor], activation: nn.Module):
        super().__init__()
        self.cls_emb: nn.Parameter | None
        width = state["token_embedding.weight"].shape[1]
        self.token_embedding = nn.Embedding(*state["token_embedding.weight"].shape)
        self.positional_embedding = nn.Parameter(torch.zeros(state["positional_embedding"].shape))
        self.text_projection = nn.Parameter(torch.zeros(state["text_projection"].shape))
        self.register_parameter("cls_emb", nn.Parameter(torch.zeros(width)) if "cls_emb" in state else None)
        blocks = [TextBlock(width, activation) for _ in range(_layers(state, r"transformer\.resblocks\.(\d+)\."))]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.ln_final = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        tokens = self.token_embedding(ids)
        mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=ids.device).tril()
        last = ids.argmax(dim=1)
        if self.cls_emb is not None:
            tokens = torch.cat((tokens, self.cls_emb.expand(len(ids), 1, -1)), dim=1)
            length = tokens.shape[1]
            mask = torch.ones(len(ids), 1, length, length, dtype=torch.bool, device=ids.device).tril()
            mask[:, 0, -1, 1:] = ids != 0
            last = torch.full_like(last, length - 1)
        tokens = tokens + self.positional_embedding[: tokens.shape[1]]
        for block in self.transformer.resblocks:  # type: ignore[union-attr]
            tokens = block(tokens, mask)
        return self.ln_final(tokens[torch.arange(len(ids)), last]) @ self.text_projection


class TextBlock(nn.Module):
    """A transformer's block, its norms before; named as open_clip's."""

    def __init__(self, width: int, activation: nn.Module):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // HEAD_WIDTH)  # for its tensors; computed below
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.activation = activation

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        parts = functional.linear(self.ln_1(tokens), self.attn.in_proj_weight, self.attn.in_proj_bias).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        tokens = tokens + self.attn.out_proj(seen.transpose(1, 2).flatten(2))
        return tokens + self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(tokens))))


class QuickGelu(nn.Module):
    """OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class BertTower(nn.Module):
    """BERT's class token, projected by two layers, as open_clip puts it into a CLIP."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        try:
            from transformers import BertConfig, BertModel
        except ImportError as error:
            raise BackboneError("transformers", "it is not installed, and BERT's text tower is its", INSTALL) from error
        words = state["transformer.embeddings.word_embeddings.weight"]
        config = BertConfig(
            vocab_size=words.shape[0],
            hidden_size=words.shape[1],
            num_hidden_layers=_layers(state, r"transformer\.encoder\.layer\.(\d+)\."),
            num_attention_heads=words.shape[1] // HEAD_WIDTH,
            intermediate_size=state["transformer.encoder.layer.0.intermediate.dense.weight"].shape[0],
            max_position_embeddings=state["transformer.embeddings.position_embeddings.weight"].shape[0],
        )
        self.transformer = BertModel(config, add_pooling_layer=False)
        middle, width = state["proj.0.weight"].shape
        outer = state["proj.2.weight"].shape[0]
        self.proj = nn.Sequential(nn.Linear(width, middle, False), nn.GELU(), nn.Linear(middle, outer, False))

    def forward(self, ids: Tensor) -> Tensor:
        tokens: Any = self.transformer(input_ids=ids, attention_mask=(ids != 0).long())
        return self.proj(tokens.last_hidden_state[:, 0])


def _layers(state: dict[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def tokenizer_file(backbone: Backbone, weights: Path, offline: bool = False) -> Path:
    """The tokenizer beside the weights, or of the hub where those come from it. Raises BackboneError without one."""
    for name in TOKENIZERS:
        if (weights.parent / name).is_file():
            return weights.parent / name
    kind, _, repository = backbone.weights.partition(":")
    if backbone.family == "conch":  # the hub has none
        place = f"{TOKENIZERS[1]}, which is in open_clip_custom/tokenizers of the authors' repository,"
    else:
        place = f"{TOKENIZERS[0]} of {repository}"
        if kind == "hf-hub" and snapshot_root(weights) is not None and not is_offline(offline):
            return find_file(Wanted(backbone.name, repository, TOKENIZERS[:1], backbone.revision))
    raise BackboneError(weights.parent, "there is no tokenizer for prompts", f"put {place} beside the weights")


def text_mark(weights: Path, tokenizer: Path) -> str:
    """Fingerprint of what a text tower makes of prompts."""
    return fingerprint(weights_digest(weights), weights_digest(tokenizer))


def _read_tokenizer(path: Path) -> "Tokenizer":
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BackboneError("tokenizers", "it is not installed, and prompts need it", INSTALL) from error
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackboneError(path, "it is no tokenizer: its JSON is damaged", "fetch the file again") from error
    return Tokenizer.from_str(json.dumps(content))
