"""OpenVINO as the engine of a backbone: the same embeddings as torch's, and clear words where it cannot compute."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from embedding import Embedder, build, find_backbone, find_weights, make_contract, open_embeddings
from embedding.openvino import check_openvino, use_openvino
from embedding.spec import ENGINES, EmbedSpec
from jobs.config import resolve
from jobs.extraction import precision_of
from tests.commands import slides, wsi
from tiling import TileSpec
from wsi.errors import BackboneError, SpecError

ENTRY = find_backbone("efficientnet-lite0")
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
VIT = replace(
    find_backbone("uni"), name="tiny", arch="vit_tiny_patch16_224", dim=48, tile_px=40, resize_px=40, input_px=32,
    options=TINY, patch_px=8,
)  # fmt: skip
installed = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed: pip install openvino")


def default() -> Embedder:
    return build(ENTRY, find_weights(ENTRY))


def vit(pooling: str) -> Embedder:
    torch.manual_seed(0)
    dim = 96 if pooling == "cls+mean" else 48
    return build(replace(VIT, pooling=pooling, dim=dim), None).requires_grad_(False)


@installed
@pytest.mark.parametrize(
    "make", [default, lambda: vit("cls+mean"), lambda: vit("dense")], ids=["convnet", "vit", "dense"]
)
def test_openvino_computes_torchs_embeddings_for_any_number_of_patches_and_threads(make):
    embedder, size = make(), (14, 40, 40, 3)
    patches = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = embedder.embed_views(patches, 2)
    use_openvino(embedder, 2)

    def embed(part: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return embedder.embed_views(part, 2)

    with ThreadPoolExecutor(4) as pool:  # more than it was told of
        found = torch.cat(list(pool.map(embed, patches.split(3))))
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@installed
def test_an_embedding_run_by_openvino_says_so_in_its_contract(tmp_path):
    folder, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    wsi("tile", folder, "-o", run)
    for engine in ("torch", "openvino"):
        text = wsi("embed", folder, "-o", run, "--engine", engine, "--dtype", "float32")
        assert ("by OpenVINO" in text) == (engine == "openvino")
    stores = {found.attrs["contract"].get("engine"): found for found in map(open_embeddings, run.glob("*/*/a.zarr"))}
    assert set(stores) == {None, "openvino"}
    ours, theirs = (np.asarray(stores[engine].embeddings, float) for engine in ("openvino", None))
    assert len(ours) > 5
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@installed
def test_openvino_makes_no_network_call(tmp_path):
    script = """
import socket, sys
calls = []
def refuse(*arguments, **named):
    calls.append(arguments)
    raise OSError("no network")
socket.getaddrinfo = socket.create_connection = refuse
from embedding import build, find_backbone, find_weights
from embedding.openvino import use_openvino
entry = find_backbone("efficientnet-lite0")
use_openvino(build(entry, find_weights(entry)))
import time
time.sleep(1)
sys.exit(str(calls) if calls else 0)
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(Path(__file__).parent.parent)}
    environment.pop("CI", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (home / "intel").exists()  # where its telemetry keeps the number it knows this machine by


@pytest.mark.skipif(find_spec("openvino") is not None, reason="openvino is installed")
def test_without_openvino_the_remedy_is_to_install_it(tmp_path):
    remedy = r"OpenVINO is not installed; run `pip install 'slidestream\[openvino\]'`"
    with pytest.raises(BackboneError, match=remedy):
        check_openvino("uni", "cpu")
    folder, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    wsi("tile", folder, "-o", run)
    assert "OpenVINO is not installed" in wsi("embed", folder, "-o", run, "--engine", "openvino", code=2)
    assert not list(run.glob("embeddings/*/*"))


def test_openvino_is_refused_on_another_device_and_in_another_precision():
    with pytest.raises(BackboneError, match=r"computes on a CPU, not on cuda:0; add --device cpu"):
        check_openvino("uni", "cuda:0")
    for asked in ({"precision": "bf16"}, {"compile": "on"}, {"engine": "onnx"}):
        with pytest.raises(SpecError, match=r"embed\.engine"):
            EmbedSpec(**{"engine": "openvino", **asked})
    assert precision_of(EmbedSpec("uni", engine="openvino")) == "fp32"  # whatever this chip is made for


def test_the_engine_is_of_the_contract_where_it_is_not_torch_and_a_model_brings_it():
    torchs, openvinos = (make_contract(ENTRY, "aa", TileSpec(), EmbedSpec(engine=name)) for name in ENGINES)
    assert "engine" not in torchs
    assert openvinos["engine"] == "openvino"
    assert torchs["hash"] != openvinos["hash"]
    for contract, engine, other in ((torchs, "torch", "openvino"), (openvinos, "openvino", "torch")):
        assert resolve({}, contract).embed.engine == engine
        with pytest.raises(SpecError, match=f"{other} was asked for, the model was trained on {engine}"):
            resolve({"embed": {"engine": other}}, contract)
