import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import wsi  # noqa: F401  (lets timm import beside a CPU torch)
from embedding import build
from embedding.catalogue.vision_language import VISION_LANGUAGE
from embedding.text import load_text_tower, text_embeddings
from embedding.zero_shot import Prompts, class_embeddings, read_prompts, slide_cosines, softmax, tile_cosines
from tests.vision_language import entry, save, shaken, tiny_plip, write_tokenizer
from wsi import BackboneError
from wsi.errors import SpecError

VARIANTS = [entry.variant(name) for entry in VISION_LANGUAGE for name in entry.variants or [entry.pooling]]
PROMPTS = ["tumor", "normal mucosa with fat", "a section of the malignant glands"]
TINY_CONCH = {"trunk": {"embed_dim": 96, "depth": 2, "num_heads": 3}, "width": 64}


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def close(ours, theirs):
    assert theirs.std() > 0.01
    return torch.allclose(torch.as_tensor(ours), torch.as_tensor(theirs), atol=1e-5)


@pytest.mark.parametrize("backbone", VARIANTS, ids=lambda backbone: f"{backbone.name}-{backbone.pooling}")
def test_each_variant_has_the_length_that_its_entry_says(backbone):
    patches = torch.zeros(2, backbone.tile_px, backbone.tile_px, 3, dtype=torch.uint8, device="meta")
    assert build(backbone, weights=None, device="meta")(patches).shape == (2, *backbone.row_shape)


class PublishedConch(nn.Module):
    """The published file's tensors; the pooling is open_clip's, which is where CONCH's comes from."""

    def __init__(self):
        from open_clip.transformer import AttentionalPooler, TextTransformer
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        self.visual = nn.Module()
        self.visual.trunk = VisionTransformer(img_size=64, num_classes=0, **TINY_CONCH["trunk"])
        self.visual.attn_pool_contrast = AttentionalPooler(64, 96, 8, 1)
        self.visual.ln_contrast = nn.LayerNorm(64)
        self.visual.proj_contrast = nn.Parameter(torch.zeros(64, 64))
        self.visual.attn_pool_caption = AttentionalPooler(96, 96, 8, 4)
        self.visual.ln_caption = nn.LayerNorm(96)
        self.text = TextTransformer(15, 40, width=128, heads=2, layers=2, output_dim=64, embed_cls=True)
        self.logit_scale = nn.Parameter(torch.zeros([]))

    def pool(self, pixels):
        tokens = self.visual.attn_pool_contrast(self.visual.trunk.forward_features(pixels))
        return self.visual.ln_contrast(tokens[:, 0])


@pytest.fixture(scope="module")
def conch(tmp_path_factory):
    """(entry, the published model, its file)"""
    model, path = shaken(PublishedConch()), tmp_path_factory.mktemp("conch") / "pytorch_model.bin"
    torch.save(model.state_dict(), path)
    base = entry("conch")
    return (
        replace(base, dim=64, variants={"pool": 64, "projected": 64}, options={**base.options, **TINY_CONCH}),
        model,
        path,
    )


def test_conch_pools_and_projects_as_published(conch, pixels):
    backbone, model, path = conch
    with torch.inference_mode():
        network, pooled = build(backbone, path).network, model.pool(pixels)
        assert close(network.embed(pixels, "pool"), pooled)
        projected = functional.normalize(pooled @ model.visual.proj_contrast, dim=-1)
        assert close(network.embed(pixels, "projected"), projected)


def test_conch_reads_prompts_as_published(conch, tmp_path):
    backbone, model, path = conch
    tokenizer = write_tokenizer(path.parent / "conch_byte_level_bpe_uncased.json")
    ids = [line[:15] + [0] * (15 - len(line)) for line in token_ids(tokenizer)]
    with torch.inference_mode():
        expected = functional.normalize(model.text(torch.tensor(ids)), dim=-1)
    assert close(text_embeddings(backbone, path, PROMPTS), expected)
    tower = load_text_tower(backbone, path)
    assert tower.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert tower.embed(["tumor " * 40]).shape == (1, 64)  # too long: cut


def token_ids(path):
    from tokenizers import Tokenizer

    return [line.ids for line in Tokenizer.from_file(str(path)).encode_batch(PROMPTS)]


def test_conch_v15_pools_as_published_and_takes_positions_of_smaller_pictures(tmp_path, pixels):
    from timm.models.vision_transformer import VisionTransformer

    model = nn.Module()
    model.trunk = VisionTransformer(img_size=32, num_classes=0, init_values=1.0, **TINY_CONCH["trunk"])
    model.attn_pool_contrast = nn.Module()
    model.attn_pool_contrast.query = nn.Parameter(torch.zeros(1, 64))
    model.attn_pool_contrast.ln_k, model.attn_pool_contrast.ln_q = nn.LayerNorm(96), nn.LayerNorm(64)
    model.attn_pool_contrast.to_q = nn.Linear(64, 64, bias=False)
    model.attn_pool_contrast.to_kv = nn.Linear(96, 128, bias=False)
    model.attn_pool_contrast.to_out = nn.Linear(64, 64, bias=False)
    model.ln_contrast = nn.LayerNorm(64)
    path, pool = save(shaken(model), tmp_path / "model.safetensors"), model.attn_pool_contrast
    base = entry("conch-v1.5")
    options = {**base.options, "width": 64, "trunk": {**base.options["trunk"], **TINY_CONCH["trunk"]}}
    network = build(replace(base, dim=64, options=options), path).network
    with torch.inference_mode():
        grid = model.trunk.pos_embed[:, 1:].reshape(1, 2, 2, 96).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, scale_factor=(4.1 / 2, 4.1 / 2), mode="bicubic")  # as DINO does it
        place = torch.cat((model.trunk.pos_embed[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 16, 96)), dim=1)
        model.trunk.patch_embed.strict_img_size = False
        model.trunk.pos_embed = nn.Parameter(place)
        tokens = pool.ln_k(model.trunk.forward_features(pixels))
        query = pool.to_q(pool.ln_q(pool.query)).reshape(1, 8, 8)
        key, value = (part.reshape(3, 17, 8, 8) for part in pool.to_kv(tokens).chunk(2, dim=-1))
        weights = (torch.einsum("qhd,nthd->nhqt", query, key) / 8**0.5).softmax(dim=-1)
        gathered = torch.einsum("nhqt,nthd->nqhd", weights, value).reshape(3, 64)
        assert close(network.embed(pixels, "pool"), model.ln_contrast(pool.to_out(gathered)))


def musk_state():
    """Tensors of a small MUSK under their published names."""
    shapes = {
        "beit3.text_embed.weight": (9, 64), "beit3.vision_embed.mask_token": (1, 1, 64),
        "beit3.vision_embed.cls_token": (1, 1, 64), "beit3.vision_embed.proj.weight": (64, 3, 16, 16),
        "beit3.vision_embed.proj.bias": (64,), "beit3.encoder.embed_positions.A.weight": (19, 64),
        "beit3.encoder.embed_positions.B.weight": (9, 64), "vision_head.weight": (64, 64),
        "language_head.weight": (64, 64), "logit_scale": (),
    }  # fmt: skip
    norms = {"self_attn.inner_attn_ln": 64, "self_attn_layer_norm": 64, "final_layer_norm": 64}
    linear = {f"self_attn.{part}": (64, 64) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    for branch in "AB":
        shapes |= {f"beit3.encoder.layer_norm.{branch}.{kind}": (64,) for kind in ("weight", "bias")}
        for block in (f"beit3.encoder.layers.{number}." for number in range(2)):
            for name, (rows, columns) in linear.items():
                shapes[f"{block}{name}.{branch}.weight"] = (rows, columns)
                shapes[f"{block}{name}.{branch}.bias"] = (rows,)
            shapes |= {f"{block}{name}.{branch}.{kind}": (64,) for name in norms for kind in ("weight", "bias")}
            ffn = {"fc1.weight": (256, 64), "fc1.bias": (256,), "fc2.weight": (64, 256), "fc2.bias": (64,)}
            ffn |= {"ffn_layernorm.weight": (256,), "ffn_layernorm.bias": (256,)}
            shapes |= {f"{block}ffn.{branch}.{name}": shape for name, shape in ffn.items()}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def musk_cls(state, pixels):
    """BEiT-3's vision branch, written out: norms before, within attention and within the feed-forward network."""

    def at(name, kind="weight"):
        return state[f"beit3.encoder.{name}.A.{kind}" if "ffn" not in name else f"beit3.encoder.{name}.{kind}"]

    def linear(name, x):
        return functional.linear(x, at(name), at(name, "bias"))

    def norm(name, x):
        return functional.layer_norm(x, x.shape[-1:], at(name), at(name, "bias"))

    patches = functional.conv2d(
        pixels, state["beit3.vision_embed.proj.weight"], state["beit3.vision_embed.proj.bias"], stride=16
    )
    cls = state["beit3.vision_embed.cls_token"].expand(len(pixels), 1, -1)
    x = torch.cat((cls, patches.flatten(2).transpose(1, 2)), dim=1) + at("embed_positions")[2:]
    for block in ("layers.0", "layers.1"):
        y = norm(f"{block}.self_attn_layer_norm", x)
        parts = [linear(f"{block}.self_attn.{part}_proj", y).unflatten(-1, (4, 16)).transpose(1, 2) for part in "qkv"]
        weights = (parts[0] / 4 @ parts[1].transpose(-1, -2)).softmax(dim=-1)
        y = norm(f"{block}.self_attn.inner_attn_ln", (weights @ parts[2]).transpose(1, 2).flatten(2))
        x = x + linear(f"{block}.self_attn.out_proj", y)
        y = functional.gelu(linear(f"{block}.ffn.A.fc1", norm(f"{block}.final_layer_norm", x)))
        x = x + linear(f"{block}.ffn.A.fc2", norm(f"{block}.ffn.A.ffn_layernorm", y))
    return norm("layer_norm", x)[:, 0]


def test_musk_is_the_vision_branch_of_its_file_and_sees_quarters_at_twice_the_scale(tmp_path, pixels):
    state, path = musk_state(), tmp_path / "model.pth"
    torch.save({"model": state}, path)
    options = {"embed_dim": 64, "depth": 2, "num_heads": 4}
    network = build(entry("musk", dim=128, variants={"ms_aug": 128, "cls": 64}, options=options), path).network
    large = functional.interpolate(pixels, size=128, mode="bicubic")
    quarters = [large[:, :, y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    expected = torch.cat((musk_cls(state, pixels), sum(musk_cls(state, part) for part in quarters) / 4), dim=-1)
    with torch.inference_mode():
        assert close(network.embed(pixels, "cls"), expected[:, :64])
        assert close(network.embed(pixels, "ms_aug"), expected)


def test_biomedclip_equals_open_clips(tmp_path):
    from open_clip.model import CustomTextCLIP
    from transformers import BertConfig

    BertConfig(vocab_size=40, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=200,
               max_position_embeddings=256).save_pretrained(tmp_path)  # fmt: skip
    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    text = {"hf_model_name": str(tmp_path), "hf_tokenizer_name": str(tmp_path), "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler", "hf_model_pretrained": False}  # fmt: skip
    model = shaken(CustomTextCLIP(32, vision, text))
    position = {"text.transformer.embeddings.position_ids": torch.arange(256)[None]}  # which older files hold
    path = save(model, tmp_path / "model.safetensors", **position)
    small = {"arch": "test_vit", "dim": 32, "variants": {"projected": 32, "pool": 64}, "options": {"num_classes": 32}}
    backbone = entry("biomedclip", input_px=160, resize_px=160, **small)
    images = torch.randn(2, 3, 160, 160)
    ids = [line + [0] * (256 - len(line)) for line in token_ids(write_tokenizer(tmp_path / "tokenizer.json"))]
    with torch.inference_mode():
        assert close(build(backbone, path).network.embed(images, "projected"), model.encode_image(images))
        expected = model.encode_text(torch.tensor(ids), normalize=True)
    assert close(text_embeddings(backbone, path, PROMPTS), expected)


def test_plip_equals_transformers_clip(tmp_path, pixels):
    backbone, model, path = tiny_plip(tmp_path)
    ids = [line + [0] * (16 - len(line)) for line in token_ids(tmp_path / "tokenizer.json")]
    network = build(backbone, path).network
    with torch.inference_mode():
        pooled = model.vision_model(pixels).pooler_output
        assert close(network.embed(pixels, "pool"), pooled)
        assert close(network.embed(pixels, "projected"), model.visual_projection(pooled))
        text = model.text_projection(model.text_model(torch.tensor(ids)).pooler_output)
    assert close(text_embeddings(backbone, path, PROMPTS), functional.normalize(text, dim=-1))
    assert load_text_tower(backbone, path).logit_scale == pytest.approx(np.exp(3), rel=1e-5)


def test_what_prompts_need_and_is_not_there_is_named(tmp_path):
    backbone, model, path = tiny_plip(tmp_path)
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{")
    with pytest.raises(BackboneError, match="damaged"):
        load_text_tower(backbone, path)
    tokenizer.unlink()
    with pytest.raises(BackboneError, match=r"no tokenizer.*tokenizer.json of vinid/plip beside the weights"):
        load_text_tower(backbone, path)
    with pytest.raises(BackboneError, match=r"conch_byte_level_bpe_uncased\.json"):
        load_text_tower(entry("conch"), path)
    write_tokenizer(tokenizer)
    save(model.vision_model, path, prefix="vision_model.", logit_scale=torch.zeros([]))
    with pytest.raises(BackboneError, match="no text tower"):
        load_text_tower(backbone, path)
    save(model.text_model, path, prefix="text_model.")
    with pytest.raises(BackboneError, match="lacks the tensor 'text_projection'"):
        load_text_tower(backbone, path)


class Letters:
    """Embeds a prompt as how often it has the letters a, b and c."""

    def embed(self, prompts):
        counts = np.array([[text.count(letter) for letter in "abc"] for text in prompts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_a_class_is_the_mean_of_its_names_in_all_templates():
    prompts = Prompts((("first", ("a", "b")), ("second", ("c",))), ("{}", "{} c"))
    half = np.sqrt(0.5)
    expected = np.array([[1 + half, 1 + half, 2 * half], [0, 0, 4]])  # a, a c, b, b c; c, c c
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert class_embeddings(Letters(), prompts) == pytest.approx(expected, abs=1e-6)


def test_a_slide_is_judged_by_the_tiles_nearest_to_each_class():
    classes = np.eye(2, dtype=np.float32)
    tiles = np.array([[3, 0], [0, 5], [0.6, 0.8], [-1, 0]], np.float16)  # of any length
    cosines = tile_cosines(tiles, classes)
    assert cosines == pytest.approx(np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]]), abs=1e-3)
    assert slide_cosines(cosines, 2) == pytest.approx([0.8, 0.9], abs=1e-3)
    assert slide_cosines(cosines, 100) == pytest.approx([0.15, 0.45], abs=1e-3)  # fewer tiles than that
    scores = softmax(cosines, 100.0)
    assert scores.sum(axis=1) == pytest.approx(1)
    assert scores[0] == pytest.approx([1, 0])
    assert softmax(cosines, 1.0)[0, 0] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[tumor, normal]", "needs `classes`"),
        ("classes: {tumor: [a], normal: [b]}\ntemplate: [x]", "needs `classes`"),
        ("classes: {tumor: carcinoma, normal: [b]}", "lists of text"),
        ("classes: {no: [a], yes: [b]}", "in quotes"),
        ("classes: {tumor: [a]}", "two or more"),
        ("classes: {tumor: [], normal: [b]}", "no name to look for"),
        ("classes: {a: [a], b: [b]}\ntemplates: [no place]", "needs one {}"),
        ("classes: {", "not valid YAML"),
    ],
)
def test_prompts_that_cannot_be_used_say_why(tmp_path, text, problem):
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=problem):
        read_prompts(path)


def test_prompts_without_templates_have_ours(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text(json.dumps({"classes": {"tumor": ["carcinoma"], "normal": ["mucosa", "muscle"]}}))
    prompts = read_prompts(path)
    assert prompts.names == ("tumor", "normal")
    assert all(text.count("{}") == 1 for text in prompts.templates)
