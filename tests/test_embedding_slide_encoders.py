"""Slide encoders: entries, networks against plain formulas, what they refuse, and the code that is run or not."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from embedding import find_backbone, make_contract
from embedding.slide_encoders import SLIDE_ENCODERS, EncodeSpec, SlideEncoder, find_slide_encoder, gated, longnet
from embedding.slide_encoders.build import build_encoder, choose_precision, tile_places
from embedding.slide_encoders.contract import check_fits, make_slide_contract, slide_contract_name
from embedding.slide_encoders.source import encoder_digest, find_encoder_weights
from embedding.slide_store import open_slide_vector, write_slide_vector
from tiling import TileSpec
from wsi import BackboneError, SpecError, StoreError

OWN = [encoder for encoder in SLIDE_ENCODERS.values() if not encoder.remote_code]
NATIVE = {"tile_px": 256, "mpp": 0.5}
DIM, WIDTH, HIDDEN, HEADS, ATTENTION = 12, 16, 24, 4, 10
SMALL = {
    "mean": {},
    "longnet": {
        "width": WIDTH, "depth": 2, "heads": HEADS, "hidden": HIDDEN, "places": 100, "segments": (4, 6, 64),
        "ratios": (1, 2, 4),
    },
    "chief": {"hidden": HIDDEN, "attention": ATTENTION},
    "feather": {"hidden": HIDDEN, "attention": ATTENTION},
    "madeleine": {"hidden": HIDDEN, "heads": 2},
}  # fmt: skip
LENGTH = {"mean": None, "longnet": WIDTH, "chief": DIM, "feather": HIDDEN, "madeleine": HIDDEN}


def small(arch: str) -> SlideEncoder:
    """An entry of that architecture, narrow."""
    entry = next(encoder for encoder in OWN if encoder.arch == arch)
    return replace(entry, tile_dim=DIM, dim=LENGTH[arch], options=SMALL[arch])


def linear(name: str, before: int, after: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def gate(name: str, before: int, hidden: int) -> dict[str, tuple[int, ...]]:
    a, b, c = (f"{name}.attention_{letter}" for letter in "abc")
    return {**linear(f"{a}.0", before, hidden), **linear(f"{b}.0", before, hidden), **linear(c, hidden, 1)}


def authors_layout(arch: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in the authors' file, with those that the vector does not need."""
    if arch == "chief":
        return {
            **linear("attention_net.0", DIM, HIDDEN), **gate("attention_net.3", HIDDEN, ATTENTION),
            **linear("classifiers", HIDDEN, 2), **linear("instance_classifiers.1", HIDDEN, 2),
            **linear("att_head.fc1", HIDDEN, ATTENTION), **linear("text_to_vision.0", DIM, HIDDEN),
            "organ_embedding": (19, DIM),
        }  # fmt: skip
    if arch == "feather":
        inside = {
            **linear("patch_embed.0", DIM, HIDDEN), **gate("global_attn", HIDDEN, ATTENTION),
            **linear("classifier", HIDDEN, 3),
        }  # fmt: skip
        return {f"model.{name}": shape for name, shape in inside.items()}
    if arch == "madeleine":
        found = {**linear("token_projector", 2 * HIDDEN, 8), **linear("projector", 2 * HIDDEN, HIDDEN)}
        for at, before, after in ((0, DIM, HIDDEN), (4, HIDDEN, HIDDEN), (8, HIDDEN, 2 * HIDDEN)):
            place = "wsi_embedders.pre_attn"
            found |= {**linear(f"{place}.{at}", before, after), **norm(f"{place}.{at + 1}", after)}
        for head in range(2):
            found |= gate(f"wsi_embedders.attn.{head}", HIDDEN, HIDDEN)
        return {f"module.{name}": shape for name, shape in found.items()}
    found = {**linear("patch_embed.proj", DIM, WIDTH), "cls_token": (1, 1, WIDTH), **norm("norm", WIDTH)}
    found |= norm("encoder.layer_norm", WIDTH)
    for layer in range(2):
        place = f"encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= linear(f"{place}.self_attn.{name}", WIDTH, WIDTH)
        for name in ("self_attn.inner_attn_ln", "self_attn_layer_norm", "final_layer_norm"):
            found |= norm(f"{place}.{name}", WIDTH)
        found |= {**linear(f"{place}.ffn.fc1", WIDTH, HIDDEN), **linear(f"{place}.ffn.fc2", HIDDEN, WIDTH)}
        found |= norm(f"{place}.ffn.ffn_layernorm", HIDDEN)
    return found


def random_state(arch: str) -> dict[str, torch.Tensor]:
    """Such tensors, random, norms near one."""
    torch.manual_seed(3)
    return {
        name: torch.randn(shape) * 0.4 + (1.0 if len(shape) == 1 and name.endswith("weight") else 0.0)
        for name, shape in authors_layout(arch).items()
    }


def bag(count: int = 23, dim: int = DIM) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, dim) and corners of `count` tiles of 512 level-0 pixels, in no order."""
    generator = np.random.default_rng(5)
    places = generator.permutation(80)[:count]
    xy = np.column_stack((places % 10, places // 10)).astype(np.int64) * 512
    return generator.normal(size=(count, dim)).astype(np.float32), xy


# ---- entries


@pytest.mark.parametrize("encoder", OWN, ids=lambda encoder: encoder.name)
def test_slide_encoder_keeps_its_word(encoder):
    tiles = torch.zeros(40, encoder.tile_dim or 7, device="meta")
    vector = build_encoder(encoder, None, "meta").network(tiles, torch.zeros(40, 2, dtype=torch.int64), 512)
    assert vector.shape == (encoder.dim or 7,)


@pytest.mark.parametrize("encoder", SLIDE_ENCODERS.values(), ids=lambda encoder: encoder.name)
def test_every_entry_states_what_its_users_must_know(encoder):
    assert encoder.licence
    assert encoder.paper.startswith("https://")
    assert encoder.weights.startswith(("hf-hub:", "file:", "none:"))
    assert encoder.coordinates in ("none", "grid", "level0")
    if encoder.name == "mean":
        assert encoder.backbone is None
        return
    backbone = find_backbone(encoder.backbone, encoder.variant)
    assert backbone.dim == encoder.tile_dim
    assert encoder.tile_px
    assert all(0.1 <= mpp <= 2 for mpp in encoder.mpp)


def test_the_published_numbers_of_parameters_are_ours():
    """GigaPath 86.3 M (MIL-Lab's table); MADELEINE 4.7 M without the projection of single tiles."""
    sizes = {e.name: sum(p.numel() for p in build_encoder(e, None, "meta").network.parameters()) for e in OWN}
    assert sizes["gigapath-slide"] == 86_330_880
    assert sizes["madeleine"] == 4_734_468
    assert sizes["mean"] == 0


def test_an_unknown_slide_encoder_names_the_nearest():
    with pytest.raises(BackboneError, match="did you mean titan"):
        find_slide_encoder("titam")


# ---- networks, loaded from files of the authors' layout, against plain formulas


def plain_gate(state: dict[str, torch.Tensor], name: str, hidden: torch.Tensor) -> torch.Tensor:
    def layer(letter: str, x: torch.Tensor) -> torch.Tensor:
        place = f"{name}.attention_{letter}"
        return F.linear(x, state[f"{place}.weight"], state[f"{place}.bias"])

    score = layer("c", layer("a.0", hidden).tanh() * layer("b.0", hidden).sigmoid())
    return score[:, 0].softmax(0)


def plain_chief(state, tiles, places):
    hidden = F.linear(tiles, state["attention_net.0.weight"], state["attention_net.0.bias"]).relu()
    return plain_gate(state, "attention_net.3", hidden) @ tiles


def plain_feather(state, tiles, places):
    hidden = F.linear(tiles, state["model.patch_embed.0.weight"], state["model.patch_embed.0.bias"]).relu()
    return plain_gate(state, "model.global_attn", hidden) @ hidden


def plain_madeleine(state, tiles, places):
    place = "module.wsi_embedders"
    for at in (0, 4, 8):
        tiles = F.linear(tiles, state[f"{place}.pre_attn.{at}.weight"], state[f"{place}.pre_attn.{at}.bias"])
        weight, bias = (state[f"{place}.pre_attn.{at + 1}.{kind}"] for kind in ("weight", "bias"))
        tiles = F.gelu(F.layer_norm(tiles, tiles.shape[1:], weight, bias))
    pooled = [plain_gate(state, f"{place}.attn.{head}", tiles[:, head::2]) @ tiles[:, head::2] for head in range(2)]
    return state["module.projector.weight"] @ torch.stack(pooled, 1).flatten() + state["module.projector.bias"]


def plain_dilated(q, k, v, branches):
    """All branches as one softmax, dense: how often each token sees each other, and how many zeros of filling."""
    heads, n, width = q.shape
    out = torch.zeros_like(q)
    for head in range(heads):
        seen, filling = torch.zeros(n, n), torch.zeros(n)
        for segment, ratio in branches:
            segment = min(segment, n)
            block = head // math.ceil(heads / ratio)
            for one in range(n):
                start = one // segment * segment
                if (one - start) % ratio != block:
                    continue
                for at in range(block, math.ceil(segment / ratio) * ratio, ratio):
                    real = at < segment and start + at < n
                    seen[one, min(start + at, n - 1)] += float(real)
                    filling[one] += float(not real)
        weights = seen * (q[head] @ k[head].T / width**0.5).exp()
        out[head] = weights @ v[head] / (weights.sum(1) + filling)[:, None]
    return out


def plain_longnet(state, tiles, places):
    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    x = linear("patch_embed.proj", tiles) + position_table(100)[places[:, 0] * 100 + places[:, 1]]
    x = torch.cat((state["cls_token"][0], x))
    branches = list(zip(SMALL["longnet"]["segments"], SMALL["longnet"]["ratios"], strict=True))
    for at in range(2):
        place = f"encoder.layers.{at}"
        y = norm(f"{place}.self_attn_layer_norm", x)
        q, k, v = (
            linear(f"{place}.self_attn.{name}_proj", y).reshape(len(x), HEADS, -1).transpose(0, 1) for name in "qkv"
        )
        mixed = plain_dilated(q, k, v, branches).transpose(0, 1).reshape(len(x), WIDTH)
        x = x + linear(f"{place}.self_attn.out_proj", norm(f"{place}.self_attn.inner_attn_ln", mixed))
        y = F.gelu(linear(f"{place}.ffn.fc1", norm(f"{place}.final_layer_norm", x)))
        x = x + linear(f"{place}.ffn.fc2", norm(f"{place}.ffn.ffn_layernorm", y))
    return norm("norm", norm("encoder.layer_norm", x), 1e-6)[0]


def position_table(side: int, width: int = WIDTH) -> torch.Tensor:
    """MAE's table of 2-D sines and cosines over a grid, which the authors' positions are looked up in."""
    grid = np.stack(np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32)))
    omega = 1 / 10000 ** (np.arange(width // 4, dtype=float) / (width / 4))
    angles = [np.einsum("m,d->md", axis.reshape(-1), omega) for axis in grid]
    return torch.from_numpy(np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)).float()


PLAIN = {"longnet": plain_longnet, "chief": plain_chief, "feather": plain_feather, "madeleine": plain_madeleine}


@pytest.mark.parametrize("count", [1, 23, 61])
@pytest.mark.parametrize("arch", PLAIN)
def test_a_file_of_the_authors_layout_loads_and_gives_what_their_formula_gives(arch, count, tmp_path, monkeypatch):
    monkeypatch.setattr(gated, "PART", 7)  # so that tiles are worked on in parts
    monkeypatch.setattr(longnet, "PART", 7)
    monkeypatch.setattr(longnet, "SCORES", HEADS * 20)
    state = random_state(arch)
    torch.save({"model": state}, tmp_path / "weights.pth")
    model = build_encoder(small(arch), tmp_path / "weights.pth")
    tiles, xy = bag(count)
    vector = model.encode(tiles, xy, 512, NATIVE)
    order = np.lexsort((xy[:, 0], xy[:, 1]))
    with torch.inference_mode():
        expected = PLAIN[arch](state, torch.from_numpy(tiles[order]), torch.from_numpy(xy[order] // 512))
    assert vector.dtype == np.float32
    assert vector == pytest.approx(expected.numpy(), abs=2e-5)
    assert vector.std() > 0.05
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


@pytest.mark.parametrize("arch", SMALL)
def test_the_order_of_tiles_never_matters_and_their_places_only_where_they_should(arch, tmp_path):
    model = build_encoder(small(arch), None)
    tiles, xy = bag()
    vector, shuffled = model.encode(tiles, xy, 512, NATIVE), np.random.default_rng(0).permutation(len(xy))
    assert np.array_equal(model.encode(tiles[shuffled], xy[shuffled], 512, NATIVE), vector)
    elsewhere = model.encode(tiles, xy[shuffled], 512, NATIVE)
    if arch == "longnet":
        assert np.abs(elsewhere - vector).max() > 1e-3
    else:
        assert elsewhere == pytest.approx(vector, abs=1e-5)


def test_mean_is_the_mean_of_any_embeddings():
    tiles, xy = bag(9, dim=5)
    vector = build_encoder(find_slide_encoder("mean"), None).encode(tiles.astype(np.float16), xy, 512, NATIVE)
    assert vector == pytest.approx(tiles.astype(np.float16).astype(np.float64).mean(0), abs=1e-6)


@pytest.mark.parametrize(
    ("n", "branches"),
    [(1, ((4, 1), (8, 2))), (9, ((4, 1), (8, 2))), (37, ((8, 1), (16, 2), (32, 4))), (30, ((30, 1), (64, 8)))],
)  # the last: more tokens passed over than there are heads
def test_dilated_attention_is_one_softmax_over_all_that_a_token_sees(n, branches):
    torch.manual_seed(1)
    q, k, v = torch.randn(3, HEADS, n, 6)
    net = longnet.DilatedAttention(HEADS * 6, HEADS, branches)
    assert torch.allclose(net.mix(q, k, v), plain_dilated(q, k, v, branches), atol=1e-5)


def test_positions_are_those_of_the_authors_table():
    places = torch.tensor([[0, 0], [3, 0], [0, 3], [29, 17]])
    assert torch.allclose(longnet.positions(places, 64), position_table(30, 64)[places[:, 0] * 30 + places[:, 1]])


@pytest.mark.parametrize("arch", ["longnet", "chief", "feather", "madeleine"])
def test_weights_of_another_network_are_refused_with_what_differs(arch, tmp_path):
    other = {"chief": "feather", "feather": "madeleine", "madeleine": "longnet", "longnet": "chief"}[arch]
    torch.save(random_state(other), tmp_path / "w.pth")
    name = small(arch).name
    with pytest.raises(BackboneError, match=rf"not the weights of {name}: \d+ tensors? missing \(such as .*unknown"):
        build_encoder(small(arch), tmp_path / "w.pth")


def test_a_folder_that_holds_the_backbones_weights_too_gives_the_slide_encoders(tmp_path):
    for name in ("pytorch_model.bin", "slide_encoder.pth"):
        torch.save({"w": torch.zeros(1)}, tmp_path / name)
    found = find_encoder_weights(find_slide_encoder("gigapath-slide"), EncodeSpec(weights=str(tmp_path)))
    assert found == tmp_path / "slide_encoder.pth"


def test_bf16_is_near_fp32_and_fp16_needs_a_gpu(tmp_path):
    entry, (tiles, xy) = small("longnet"), bag()
    save_file(random_state("longnet"), tmp_path / "model.safetensors")
    exact, half = (build_encoder(entry, tmp_path / "model.safetensors", precision=p) for p in ("fp32", "bf16"))
    a, b = (model.encode(tiles, xy, 512, NATIVE) for model in (exact, half))
    assert not np.array_equal(a, b)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99
    assert [choose_precision(entry, "auto", device) for device in ("cpu", "cuda:1")] == ["fp32", "fp16"]
    with pytest.raises(SpecError, match="does not compute in fp16"):
        choose_precision(entry, "fp16", "cpu")


def test_a_vector_that_is_not_finite_is_never_given():
    tiles, xy = bag()
    tiles[3, 2] = np.inf
    with pytest.raises(BackboneError, match="not finite"):
        build_encoder(find_slide_encoder("mean"), None).encode(tiles, xy, 512, NATIVE)


# ---- where tiles are


@pytest.mark.parametrize(
    ("xy", "span_px", "tiles", "cells"),
    [
        ([[0, 0], [3 * 512, 70 * 512]], 512, NATIVE, [[0, 0], [3, 70]]),  # a slide at 0.25 µm
        ([[0, 0], [999 * 253, 7 * 253]], 253, NATIVE, [[0, 0], [999, 7]]),  # at 0.5059 µm: every tile has its cell
        ([[1024, 512]], 1024, {"tile_px": 512, "mpp": 0.5}, [[2, 1]]),  # tiles twice as large: two cells on
        ([[512, 1024]], 512, {"tile_px": 256, "mpp": 1.0}, [[2, 4]]),  # or twice as coarse
    ],
)
def test_gigapaths_cells_are_its_own_tiles(xy, span_px, tiles, cells):
    found = tile_places(find_slide_encoder("gigapath-slide"), np.array(xy), span_px, tiles)
    assert found.tolist() == cells


def test_tiles_beyond_the_positions_that_are_known_are_refused():
    with pytest.raises(BackboneError, match="beyond the 128 mm it knows"):
        tile_places(find_slide_encoder("gigapath-slide"), np.array([[0, 1000 * 256]]), 256, NATIVE)


def test_titan_is_told_level0_pixels_and_refuses_tiles_that_overlap():
    xy = np.array([[100, 1000], [612, 1000], [100, 1512]])
    titan = find_slide_encoder("titan")
    assert tile_places(titan, xy, 512, NATIVE) is xy
    with pytest.raises(BackboneError, match="1 tiles overlap others"):
        tile_places(titan, np.array([[100, 1000], [356, 1000]]), 512, NATIVE)


# ---- contracts


def tiles_of(name: str, variant: str | None = None, **changes) -> dict:
    backbone = find_backbone(name, variant)
    spec = TileSpec(**{"tile_px": backbone.tile_px, "mpp": backbone.mpp[0], **changes})
    return make_contract(backbone, "aa", spec)


@pytest.mark.parametrize(
    ("encoder", "tiles", "notes"),
    [
        ("titan", tiles_of("conch-v1.5"), []),
        ("prism", tiles_of("virchow"), []),
        ("gigapath-slide", tiles_of("prov-gigapath"), []),
        ("chief-slide", tiles_of("chief-ctranspath"), []),
        ("madeleine", tiles_of("conch", tile_px=256, mpp=1.0), []),
        ("madeleine", tiles_of("conch"), ["tiles of 512 px, its authors' have 256", "0.5 µm/px, its authors' have 1"]),
        ("feather", tiles_of("conch-v1.5", tile_px=256), ["tiles of 256 px, its authors' have 512"]),
        ("feather-uni2", {**tiles_of("uni2-h"), "stain": {"method": "macenko"}},
         ["stains that were changed before, its authors' were not"]),
        ("mean", tiles_of("resnet50", tile_px=100), []),
    ],
)  # fmt: skip
def test_embeddings_that_fit_pass_and_other_tiles_are_told(encoder, tiles, notes):
    assert check_fits(find_slide_encoder(encoder), tiles) == notes


@pytest.mark.parametrize(
    ("encoder", "tiles"),
    [("titan", tiles_of("conch")), ("gigapath-slide", tiles_of("uni2-h")), ("prism", tiles_of("virchow2"))],
)  # the second has the same length, the third the same length and pooling
def test_embeddings_of_another_kind_are_refused_with_both_side_by_side(encoder, tiles):
    entry = find_slide_encoder(encoder)
    with pytest.raises(BackboneError, match="another kind") as caught:
        check_fits(entry, tiles)
    row = next(line for line in str(caught.value).splitlines() if "≠ backbone" in line)
    assert row.split() == ["≠", "backbone", tiles["backbone"], entry.backbone]
    assert f"--backbone {entry.backbone} --tile-px {entry.tile_px}" in str(caught.value)


def test_prism_refuses_virchows_class_token_alone():
    tiles = {**tiles_of("virchow"), "pooling": "cls", "dim": 1280}
    with pytest.raises(BackboneError, match=r"≠ pooling +cls +cls\+mean"):
        check_fits(find_slide_encoder("prism"), tiles)


def test_dense_embeddings_are_refused_by_all():
    with pytest.raises(BackboneError, match="dense"):
        check_fits(find_slide_encoder("mean"), {**tiles_of("resnet50"), "pooling": "dense"})


def test_a_slides_contract_changes_with_everything_that_determines_its_vector():
    entry, tiles = find_slide_encoder("chief-slide"), tiles_of("chief-ctranspath")
    base = make_slide_contract(entry, "aa", tiles)
    others = [
        make_slide_contract(entry, "ab", tiles),
        make_slide_contract(entry, "aa", tiles, "bf16"),
        make_slide_contract(entry, "aa", tiles_of("chief-ctranspath", mpp=0.5)),
        make_slide_contract(replace(entry, options={**entry.options, "hidden": 8}), "aa", tiles),
        make_slide_contract(replace(entry, coordinates="grid"), "aa", tiles),
    ]
    assert len({contract["hash"] for contract in (base, *others)}) == 6
    assert base == make_slide_contract(entry, "aa", tiles)
    assert slide_contract_name(base) == f"chief-slide-{base['hash'][:8]}"


# ---- the authors' own code

CODE = """
from pathlib import Path
import torch
from transformers import PretrainedConfig, PreTrainedModel

Path({mark!r}).touch()


class TinyConfig(PretrainedConfig):
    model_type = "tiny-slide"


class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.mix = torch.nn.Linear(5, 3)
        self.post_init()

    def encode_slide_from_patch_features(self, features, coords, patch_size_lv0):
        # only numpy's numbers have item()
        cells = (coords - coords.min(dim=1, keepdim=True).values) // patch_size_lv0.item()
        return (self.mix(features) * cells.sum(-1, keepdim=True)).sum(1)

    def slide_representations(self, tile_embeddings):
        tokens = self.mix(tile_embeddings)
        return dict(image_embedding=tokens.mean(1), image_latents=tokens)
"""


@pytest.fixture
def authors_folder(tmp_path, monkeypatch):
    """A repository as authors publish it, with a network that leaves a mark when its code runs."""
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", list(sys.path))
    folder = tmp_path / "tiny-slide"
    folder.mkdir()
    names = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyModel"}
    settings = {"model_type": "tiny-slide", "architectures": ["TinyModel"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "modeling_tiny.py").write_text(CODE.format(mark=str(tmp_path / "code-ran")))
    torch.manual_seed(0)
    tensors = {"mix.weight": torch.randn(3, 5), "mix.bias": torch.randn(3)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, tensors


@pytest.mark.parametrize("name", ["titan", "prism"])
def test_the_authors_code_runs_when_it_is_trusted_and_is_called_as_they_call_it(name, authors_folder):
    folder, tensors = authors_folder
    entry = replace(find_slide_encoder(name), tile_dim=5, dim=3)
    spec = EncodeSpec(encoder=name, weights=str(folder), trust_remote_code=True)
    assert find_encoder_weights(entry, spec) == folder
    model = build_encoder(entry, folder, trusted=True)
    assert (folder.parent / "code-ran").exists()
    tiles, xy = bag(dim=5)
    tokens = tiles.astype(np.float64) @ tensors["mix.weight"].numpy().T + tensors["mix.bias"].numpy()
    cells = (xy - xy.min(0)) // 512
    expected = {"titan": (tokens * cells.sum(1)[:, None]).sum(0), "prism": tokens.mean(0)}[name]
    assert model.encode(tiles, xy, 512, NATIVE) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_no_code_runs_that_the_user_did_not_allow(authors_folder):
    folder, _ = authors_folder
    entry = find_slide_encoder("titan")
    for attempt in (
        lambda: find_encoder_weights(entry, EncodeSpec(weights=str(folder))),
        lambda: build_encoder(entry, folder),
    ):
        with pytest.raises(BackboneError, match=r"modeling_tiny.py in .*allow it with --trust-remote-code"):
            attempt()
    with pytest.raises(BackboneError, match=r"\*.py of MahmoodLab/TITAN, revision dac6773.*--trust-remote-code"):
        find_encoder_weights(entry, EncodeSpec())
    assert not (folder.parent / "code-ran").exists()


def test_code_counts_in_the_digest_and_a_folder_without_settings_is_refused(authors_folder):
    folder, _ = authors_folder
    entry = find_slide_encoder("titan")
    first = encoder_digest(entry, folder)
    (folder / "modeling_tiny.py").write_text((folder / "modeling_tiny.py").read_text() + "\n# another day\n")
    assert encoder_digest(entry, folder) != first
    (folder / "config.json").unlink()
    with pytest.raises(BackboneError, match=r"it has no config\.json"):
        find_encoder_weights(entry, EncodeSpec(weights=str(folder), trust_remote_code=True))


def test_offline_an_encoder_that_is_not_here_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match="not on this machine"):
        find_encoder_weights(find_slide_encoder("titan"), EncodeSpec(offline=True, trust_remote_code=True))
    with pytest.raises(BackboneError, match="not on this machine"):
        find_encoder_weights(find_slide_encoder("gigapath-slide"), EncodeSpec(offline=True))
    with pytest.raises(BackboneError, match=r"publish the weights elsewhere.*--weights"):
        find_encoder_weights(find_slide_encoder("chief-slide"), EncodeSpec())


# ---- the store


@pytest.mark.parametrize("vector", [np.arange(3, dtype=np.float32), None])
def test_a_stored_vector_comes_back_with_its_contract(vector, tmp_path):
    contract = make_slide_contract(find_slide_encoder("mean"), None, {**tiles_of("resnet50"), "dim": 3})
    facts = {
        "slide_id": "s", "fingerprint": "f", "identity": "i", "embeddings": "e", "contract": contract, "notes": ["n"],
    }  # fmt: skip
    write_slide_vector(tmp_path / "s.zarr", vector, facts, 9, 2)
    store = open_slide_vector(tmp_path / "s.zarr")
    assert (store.slide_id, store.fingerprint, store.embeddings, store.notes) == ("s", "f", "e", ["n"])
    assert (store.contract, store.contract_hash) == (contract, contract["hash"])
    assert store.vector is None if vector is None else np.array_equal(store.vector, vector)
    if vector is not None:
        next(path for path in (tmp_path / "s.zarr" / "vector" / "c").rglob("*") if path.is_file()).unlink()
        with pytest.raises(StoreError, match="not complete"):
            open_slide_vector(tmp_path / "s.zarr")
