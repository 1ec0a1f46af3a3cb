import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from embedding import BACKBONES, Backbone, build, find_backbone, find_weights, weights_digest
from embedding.weights import read_state
from wsi import BackboneError


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=lambda backbone: backbone.name)
def test_backbone_keeps_its_word(backbone):  # meta device: shapes without weights or memory, so nothing is skipped
    patches = torch.zeros(2, backbone.tile_px, backbone.tile_px, 3, dtype=torch.uint8, device="meta")
    assert build(backbone, weights=None, device="meta")(patches).shape == (2, backbone.dim)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=lambda backbone: backbone.name)
def test_every_entry_states_what_its_users_must_know(backbone):
    assert backbone.licence
    assert backbone.paper.startswith("https://")
    assert backbone.weights.startswith(("hf-hub:", "package:"))
    assert backbone.pooling in ("cls", "mean", "cls+mean", "pool")
    assert all(0.1 <= mpp <= 2 for mpp in backbone.mpp)


def test_the_default_backbone_equals_its_packages_own_recipe(real_slide):
    """EfficientNet-Lite0 as its package builds and feeds it: (x - 127) / 128, last features averaged."""
    from efficientnet_lite_pytorch import EfficientNet

    from wsi import Region, open_slide

    with open_slide(real_slide) as slide:
        patch = slide.read(Region(900, 1500, 224, 224), 0)
    patches = torch.from_numpy(np.stack([patch, np.rot90(patch).copy()]))
    backbone = find_backbone("efficientnet-lite0")
    weights = find_weights(backbone)
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
    with torch.inference_mode():
        inputs = (patches.permute(0, 3, 1, 2).float() - 127) / 128
        expected = theirs.extract_features(inputs).mean(dim=(2, 3))
        embeddings = build(backbone, weights)(patches)
    assert embeddings.shape == (2, 1280)
    assert torch.allclose(embeddings, expected, atol=1e-5)
    assert expected.std() > 0.1


def tiny_vit(**changes) -> Backbone:
    """A ViT of the shape of the pathology ones, small: 4 registers, class token first."""
    options = {
        "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0,
        "reg_tokens": 4, "dynamic_img_size": True, "global_pool": "",
    }  # fmt: skip
    fields = {
        "name": "tiny", "arch": "vit_tiny_patch16_224", "weights": "hf-hub:nobody/tiny", "dim": 48, "licence": "none",
        "paper": "", "tile_px": 32, "input_px": 32, "resize_px": 32, "options": options,
    }  # fmt: skip
    return Backbone(**{**fields, **changes})


@pytest.mark.parametrize(("pooling", "dim"), [("cls", 48), ("mean", 48), ("cls+mean", 96)])
def test_pooling_takes_the_right_tokens(pooling, dim):
    embedder = build(tiny_vit(pooling=pooling, dim=dim), None)
    tokens = torch.zeros(1, 1 + 4 + 16, 48)
    tokens[:, 0], tokens[:, 1:5], tokens[:, 5:] = 1, 100, 3  # class token, registers, patch tokens
    expected = {"cls": [1], "mean": [3], "cls+mean": [1, 3]}[pooling]
    assert embedder.pool(tokens).unique().tolist() == expected


def test_weights_load_from_a_file_or_a_folder_and_give_the_same_embeddings(tmp_path):
    torch.manual_seed(0)
    source = build(tiny_vit(), None)
    save_file(source.network.state_dict(), tmp_path / "model.safetensors")
    torch.save({"model": source.network.state_dict()}, tmp_path / "other.pth")
    patches = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    expected = source(patches).detach()
    for given in (tmp_path, tmp_path / "model.safetensors", tmp_path / "other.pth"):
        loaded = build(tiny_vit(), find_weights(tiny_vit(), given))
        assert torch.allclose(loaded(patches), expected, atol=1e-6)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_position_embeddings_of_another_grid_are_resized(tmp_path):
    trained = tiny_vit(options={**tiny_vit().options, "img_size": 64})
    save_file(build(trained, None).network.state_dict(), tmp_path / "model.safetensors")
    loaded = build(tiny_vit(), tmp_path / "model.safetensors")
    assert loaded(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 48)


def test_weights_of_another_network_are_refused_with_what_differs(tmp_path):
    save_file({"cls_token": torch.zeros(1, 1, 7), "stranger": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=r"not the weights of tiny.*missing.*unknown \(such as stranger\)"):
        build(tiny_vit(), tmp_path / "w.safetensors")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        read_state(tmp_path / "evil.pth")


@pytest.mark.parametrize(
    ("resize", "crop", "tile"), [(32, 32, 40), (40, 32, 50), (40, 32, 40)], ids=["resize", "resize+crop", "crop"]
)
def test_the_transform_is_pillows_bicubic_then_a_central_crop(resize, crop, tile, real_slide):
    from PIL import Image

    from wsi import Region, open_slide

    with open_slide(real_slide) as slide:
        pixels = slide.read(Region(900, 1500, tile, tile), 0)
    side = len(pixels)
    backbone = tiny_vit(resize_px=resize, input_px=crop)
    ours = build(backbone, None).transform(torch.from_numpy(pixels[None]))[0]
    edge = (resize - crop) // 2
    image = Image.fromarray(pixels).resize((resize, resize), Image.Resampling.BICUBIC) if side != resize else pixels
    theirs = torch.from_numpy(np.asarray(image)[edge : edge + crop, edge : edge + crop].copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in backbone.norm)
    assert ours.shape == (3, crop, crop)
    difference = ((ours - (theirs - mean) / std) * std * 255).abs()
    assert difference.max() <= 5.01  # grey levels: Pillow rounds and clips between its two passes, a GPU does not
    assert difference.mean() < 0.3


def test_an_unknown_backbone_names_the_nearest():
    with pytest.raises(BackboneError, match="did you mean virchow"):
        find_backbone("virchov2")


def test_weights_that_cannot_be_had_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match=r"not on this machine.*--weights"):
        find_weights(find_backbone("uni"))
    with pytest.raises(BackboneError, match="no such weights file"):
        find_weights(find_backbone("uni"), tmp_path / "none.safetensors")
    with pytest.raises(BackboneError, match="0 weights files"):
        find_weights(find_backbone("uni"), tmp_path)


def test_a_digest_names_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"weights")
    first = weights_digest(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"weightz!")
    assert weights_digest(tmp_path / "a") != first
    assert len(first) == 64
