import numpy as np
import pytest
import torch

from embedding.segmenter import load_segmenter, segment_tissue, tissue_probability
from tests.slides import ArraySlide
from tiling import TissueSpec, find_tissue
from wsi import EngineError, Region, open_slide


def network():
    from torchvision.models.segmentation import deeplabv3_resnet50  # after wsi, which makes torchvision importable

    return deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=2, aux_loss=True).eval()


@pytest.fixture(scope="module")
def state():
    """Random weights of the upstream network, by torchvision's names."""
    torch.manual_seed(0)
    return network().state_dict()


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("segmenter") / "deeplabv3_seg_v4.ckpt"
    lightning = {f"model.{name}": value for name, value in state.items()}  # the keys of HEST's file
    torch.save({"state_dict": lightning, "epoch": 3, "hyper_parameters": {}}, path)
    return path


def test_weights_in_the_upstream_layout_give_the_upstream_answer(weights, state, real_slide):
    reference = network()
    reference.load_state_dict(state)
    with open_slide(real_slide) as slide:
        patch = slide.read(Region(600, 1200, 512, 512), 0)
    pixels = torch.from_numpy(patch).permute(2, 0, 1)[None] / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    with torch.inference_mode():
        logits = reference(pixels / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))["out"]
    expected = logits.softmax(1)[0, 1].reshape(64, 8, 64, 8).mean((1, 3)).numpy()
    found = tissue_probability(load_segmenter(weights), patch[None], "cpu")[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_mask_covers_the_slide_and_each_cell_lies_where_it_was_seen(weights, monkeypatch):
    """The network is replaced by a look at the red channel; reading, cells and assembly are real."""
    monkeypatch.setattr("embedding.segmenter.tissue_probability", dark_share)
    pixels = np.full((1500, 2300, 3), 255, np.uint8)
    pixels[640:1280, 1280:1760] = 100, 50, 130
    mask = segment_tissue(ArraySlide([pixels], 0.5), weights)
    assert mask.shape == (94, 144)  # 16 level-0 px, 8 µm, a cell
    expected = np.zeros_like(mask)
    expected[40:80, 80:110] = True
    assert (mask == expected).all()
    tissue = find_tissue(ArraySlide([pixels], 0.5), TissueSpec(method="learned", weights=str(weights)), mask)
    assert tissue.area_um2 == pytest.approx(640 * 480 * 0.25)


def dark_share(model, patches, device):
    return (patches[..., 0] < 128).reshape(len(patches), 64, 8, 64, 8).mean((2, 4))


def test_other_weights_and_missing_files_are_refused(tmp_path, state):
    with pytest.raises(EngineError, match="no such weights file"):
        load_segmenter(tmp_path / "none.ckpt")
    torch.save({"state_dict": {"encoder.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(EngineError, match="no DeepLabV3"):
        load_segmenter(tmp_path / "other.pth")
    wide = state | {"model.classifier.4.weight": torch.zeros(21, 256, 1, 1), "model.classifier.4.bias": torch.zeros(21)}
    torch.save({"state_dict": wide}, tmp_path / "voc.pth")
    with pytest.raises(EngineError, match="two classes"):
        load_segmenter(tmp_path / "voc.pth")
