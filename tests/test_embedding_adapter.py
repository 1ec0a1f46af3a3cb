"""Adapters: merged they compute what was trained, and they are laid over the weights that they were made for only."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from embedding import Backbone, build, find_backbone, make_contract
from embedding.adapter import Change, adapter_digest, add_lora, open_adapter, write_adapter
from embedding.contract import explain_mismatch
from embedding.networks import find_family
from embedding.slide_encoders import find_slide_encoder
from embedding.slide_encoders.contract import check_fits, needs
from embedding.spec import EmbedSpec
from embedding.weights import weights_digest
from tiling.spec import TileSpec
from wsi.errors import BackboneError

VIT = Backbone("tiny", "vit_tiny_patch16_224", "file:none", 192, "MIT", "none", patch_px=16,
               options={"num_classes": 0, "depth": 2})  # fmt: skip
CONVNET = Backbone("lite", "tf_efficientnet_lite0", "file:none", 1280, "MIT", "none", pooling="pool",
                   options={"num_classes": 0})  # fmt: skip
LORA = Change("lora", ("blocks.0.attn.qkv", "blocks.1.attn.proj"), 4, 8.0)
POINTWISE = Change("lora", ("blocks.5.0.conv_pw", "blocks.6.0.conv_pwl", "conv_head"), 4, 8.0)
LAST = Change("last-blocks", ("blocks.1.mlp.fc2.weight", "norm.bias"))


def weights_of(folder, backbone, seed=0):
    torch.manual_seed(seed)
    path = folder / f"{backbone.name}-{seed}.safetensors"
    save_file(find_family(backbone.family).create(backbone).state_dict(), path)
    return path


def adapted(folder, backbone, change, seed=0):
    """Random weights, an adapter over them with every target moved, and the network as it was before it was saved."""
    weights = weights_of(folder, backbone, seed)
    embedder = build(backbone, weights)
    if change.method == "lora":
        add_lora(embedder.network, change)
    with torch.no_grad():
        torch.manual_seed(seed + 1)
        for name, value in embedder.network.named_parameters():
            if "lora_B" in name or name in change.targets:
                value.add_(0.05 * torch.randn_like(value))
    base = backbone, weights_digest(weights)
    write_adapter(folder / "adapter", embedder.network, change, base, {"classes": ["a", "b"]})
    return weights, folder / "adapter", embedder.eval()


def patches(count=3, seed=2):
    return torch.randint(0, 256, (count, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def embed(embedder):
    with torch.inference_mode():
        return embedder(patches())


def edit(folder, **changes):
    path = folder / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return adapted(tmp_path_factory.mktemp("adapter"), VIT, LORA)


@pytest.mark.parametrize(
    ("backbone", "change"),
    [(VIT, LORA), (VIT, LAST), (CONVNET, POINTWISE)],
    ids=["lora", "last-blocks", "convolutions"],
)
def test_merged_it_computes_what_was_trained_in_a_network_of_the_same_shape(backbone, change, tmp_path):
    weights, folder, trained = adapted(tmp_path, backbone, change)
    plain, merged = build(backbone, weights), build(backbone, weights, adapter=folder)
    torch.testing.assert_close(embed(merged), embed(trained), rtol=1e-4, atol=1e-4)
    assert (embed(merged) - embed(plain)).abs().max() > 0.01
    assert list(merged.network.state_dict()) == list(plain.network.state_dict())
    assert [type(part) for part in merged.modules()] == [type(part) for part in plain.modules()]
    assert not any(value.requires_grad for value in merged.parameters())


def test_a_lora_adapter_is_one_that_peft_reads(made):
    from peft import PeftModel

    weights, folder, trained = made
    plain = build(VIT, weights)
    plain.network = PeftModel.from_pretrained(plain.network, str(folder)).merge_and_unload()
    torch.testing.assert_close(embed(plain), embed(trained), rtol=1e-4, atol=1e-4)


def test_only_the_targets_move(made):
    weights, folder, _ = made
    before, after = (build(VIT, weights, adapter=one).network.state_dict() for one in (None, folder))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{target}.weight" for target in LORA.targets}


def test_it_is_laid_over_the_weights_in_float32_before_they_are_cast(made):
    weights, folder, trained = made
    half = build(VIT, weights, precision="bf16", adapter=folder)
    cosine = torch.nn.functional.cosine_similarity(embed(half), embed(trained))
    assert cosine.min() > 0.999


def test_another_backbone_other_weights_and_another_variant_are_refused(made, tmp_path):
    weights, folder, _ = made
    with pytest.raises(BackboneError, match="it is an adapter of tiny, not of other"):
        build(replace(VIT, name="other"), weights, adapter=folder)
    with pytest.raises(BackboneError, match=r"trained over other weights of tiny: sha256 .*--weights"):
        build(VIT, weights_of(tmp_path, VIT, seed=5), adapter=folder)
    with pytest.raises(BackboneError, match="for the variant cls, not mean; embed with --variant cls"):
        build(replace(VIT, pooling="mean"), weights, adapter=folder)


def test_its_digest_is_of_the_tensors_and_of_how_they_are_laid(made, tmp_path):
    _, folder, _ = made
    first = adapter_digest(folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    edit(copy, classes=["c", "d"])
    assert adapter_digest(copy) == first  # what it was trained on changes no embedding
    edit(copy, alpha=16.0)
    assert adapter_digest(copy) != first
    edit(copy, alpha=8.0, targets=list(LORA.targets[:1]))
    assert adapter_digest(copy) != first


def test_it_is_part_of_the_contract_which_without_it_is_as_before(made):
    _, folder, _ = made
    entry, tile = find_backbone("efficientnet-lite0"), TileSpec(tile_px=224, mpp=0.5)
    without, with_it = (make_contract(entry, "d" * 64, tile, EmbedSpec(adapter=one)) for one in (None, str(folder)))
    assert "adapter" not in without
    assert without == make_contract(entry, "d" * 64, tile)
    assert with_it["adapter"] == adapter_digest(folder)
    assert with_it["hash"] != without["hash"]
    assert explain_mismatch(without, with_it)[1].endswith("name its folder with --adapter")
    assert explain_mismatch(with_it, without)[1].endswith("leave --adapter out")


def test_the_contract_of_embeddings_without_an_adapter_has_kept_its_hash():
    entry = find_backbone("efficientnet-lite0")
    contract = make_contract(entry, "0" * 64, TileSpec(tile_px=224, mpp=0.5))
    assert contract["hash"] == "bbd33075a886"


def test_a_slide_encoder_says_that_it_was_trained_on_the_frozen_backbone():
    encoder = find_slide_encoder("titan")
    tiles = {**needs(encoder), "stain": None}
    assert check_fits(encoder, tiles) == []
    assert check_fits(encoder, {**tiles, "adapter": "a" * 64}) == [
        "a backbone that was fine-tuned, its authors' was not"
    ]


def test_a_cut_file_altered_facts_and_a_folder_that_is_none_are_refused(tmp_path):
    weights, folder, _ = adapted(tmp_path, VIT, LORA)
    file, facts = folder / "adapter_model.safetensors", folder / "adapter.json"
    whole, said = file.read_bytes(), facts.read_text()
    for content in (whole[:-8], whole[:200], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(content)
        with pytest.raises(BackboneError, match="tensors are damaged: their sha256"):
            build(VIT, weights, adapter=folder)
    file.unlink()
    with pytest.raises(BackboneError, match="tensors are not there"):
        build(VIT, weights, adapter=folder)
    file.write_bytes(whole)
    for text in ("", "[]", "{", said.replace('"targets"', '"target"')):
        facts.write_text(text)
        with pytest.raises(BackboneError, match=r"adapter\.json is damaged"):
            open_adapter(folder)
    for change in ({"schema": "slidestream/adapter/9"}, {"method": "prefix"}, {"rank": 0}, {"targets": []}):
        facts.write_text(said)
        edit(folder, **change)
        with pytest.raises(BackboneError, match="not known here"):
            open_adapter(folder)
    with pytest.raises(BackboneError, match="it is no adapter"):
        open_adapter(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state | {"base_model.model.blocks.9.attn.qkv.lora_A.weight": torch.zeros(1)}, "do not fit"),
        (lambda state: dict(list(state.items())[1:]), "do not fit"),
        (lambda state: {name: value[:1].contiguous() for name, value in state.items()}, "do not fit"),
        (lambda state: {name: value * float("nan") for name, value in state.items()}, "NaN"),
    ],
    ids=["one more", "one less", "other shapes", "NaN"],
)
def test_tensors_that_do_not_fit_the_network_are_refused_even_where_their_checksum_is_stated(change, said, tmp_path):
    weights, folder, _ = adapted(tmp_path, VIT, LORA)
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    edit(folder, sha256=weights_digest(file))
    with pytest.raises(BackboneError, match=said):
        build(VIT, weights, adapter=folder)


def test_a_target_that_the_network_does_not_have_is_refused(tmp_path):
    weights, folder, _ = adapted(tmp_path, VIT, LORA)
    edit(folder, targets=["blocks.0.attn.qkv", "blocks.7.attn.proj"])
    with pytest.raises(BackboneError, match=r"no module 'blocks\.7\.attn\.proj'"):
        build(VIT, weights, adapter=folder)


def test_pickled_tensors_are_never_read(tmp_path):
    weights, folder, _ = adapted(tmp_path, VIT, LORA)
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    file.unlink()
    torch.save(state, folder / "adapter_model.bin")  # peft would take it
    with pytest.raises(BackboneError, match="tensors are not there"):
        build(VIT, weights, adapter=folder)
    torch.save(state, file)
    edit(folder, sha256=weights_digest(file))
    with pytest.raises(BackboneError, match="damaged safetensors file"):
        build(VIT, weights, adapter=folder)


def test_of_pefts_own_configuration_nothing_is_believed(made, tmp_path):
    weights, folder, trained = made
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "adapter_config.json").read_text())
    config |= {"lora_alpha": 1e6, "megatron_config": {}, "megatron_core": "os"}
    (copy / "adapter_config.json").write_text(json.dumps(config))
    torch.testing.assert_close(embed(build(VIT, weights, adapter=copy)), embed(trained), rtol=1e-4, atol=1e-4)
