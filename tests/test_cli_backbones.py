"""wsi backbones: the table, bundles for machines without a network, and golden vectors."""

import hashlib
import io
import json
import logging
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from embedding import BACKBONES, Backbone, build, find_backbone, find_weights, weights_digest
from embedding.golden import SHIPPED, golden_tiles, shipped, write_golden
from embedding.slide_encoders import SLIDE_ENCODERS
from embedding.weights import local_copy, weights_home
from tests.commands import wsi
from tests.hub_server import hub_in_use
from wsi import BackboneError

LITE0 = "efficientnet-lite0"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with the tiny backbone's weights, which is registered; printed lines are of 80 columns."""
    from cli import console

    monkeypatch.setattr(console.out, "_width", 80)
    torch.manual_seed(0)
    with hub_in_use(tmp_path, monkeypatch) as server:
        weights = save(build(tiny(), None).network.state_dict())
        server.commit("lab/tiny", model__safetensors=weights, README__md=b"card", LICENSE=b"terms")
        monkeypatch.setitem(BACKBONES, "tiny", tiny())
        yield server


def tiny(**changes) -> Backbone:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    whole = Backbone(
        "tiny", "vit_tiny_patch16_224", "hf-hub:lab/tiny", 48, licence="CC-BY-4.0", paper="https://example.org",
        tile_px=32, input_px=32, resize_px=32, options=options, patch_px=8, variants={"cls": 48, "mean": 48},
    )  # fmt: skip
    return replace(whole, **changes)


def test_the_list_has_a_line_for_every_model_in_80_columns(hub):
    lines = wsi("backbones", "list").splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if line} >= {*BACKBONES, *SLIDE_ENCODERS}
    (line,) = (line for line in lines if line.startswith(LITE0))
    assert line.split() == [LITE0, "*", "1280", "224", "0.25–2", "yes", "Apache-2.0"]
    (line,) = (line for line in lines if line.startswith("uni "))
    assert line.split() == ["uni", "1024", "256", "0.5", "yes", "no", "CC-BY-NC-ND-4.0"]
    starred = [" * " in line for line in lines[1 : len(BACKBONES)]]  # tiny, which the test added, is after them
    assert starred == sorted(starred)  # those that are not of pathology come last
    assert next(line for line in lines if line.startswith("plip ")).endswith(" none stated …")
    listed = json.loads(wsi("backbones", "list", "--json"))
    assert [entry["name"] for entry in listed] == [*BACKBONES, *SLIDE_ENCODERS]


def test_listing_loads_no_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['wsi', 'backbones', 'list']\nfrom cli.main import main\ntry: main()\n"
        "except SystemExit as end: assert not end.code\nassert not {'torch', 'timm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[1])


def test_everything_can_be_shown(hub):
    for entry in (*BACKBONES.values(), *SLIDE_ENCODERS.values()):
        text = wsi("backbones", "show", entry.name)
        assert entry.licence in " ".join(text.split())
        assert entry.paper in text
    text = " ".join(wsi("backbones", "show", "uni").split())
    assert f"accept the terms at {hub.url}/MahmoodLab/UNI, set HF_TOKEN, then `wsi backbones fetch uni`" in text
    assert "224 px at 0.25, 0.5, 1 or 2 µm/px" in wsi("backbones", "show", LITE0)
    assert wsi("backbones", "show", "ctranspath").count("https://drive.google.com") == 1
    assert wsi("backbones", "fetch", "ctranspath", code=2).count("https://drive.google.com") == 1
    assert "it is a slide encoder" in wsi("backbones", "verify", "titan", code=2)
    assert "'cpu,' has no name" in wsi("backbones", "verify", LITE0, "--device", "cpu,", code=2)
    assert "did you mean uni or uni2-h" in wsi("backbones", "show", "uni2", code=2)


def test_fetching_says_licence_and_size_first_and_then_what_came(hub):
    text = wsi("backbones", "fetch", "tiny")
    commit, files = hub.repositories["lab/tiny"][-1]
    size = f"{len(files['model.safetensors']) / 1e6:.1f} MB"
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    places = [text.index(word) for word in ("CC-BY-4.0", size, digest, commit, "its entry pins none", "cache")]
    assert places == sorted(places)
    hub.gated.add("lab/tiny")
    shutil.rmtree(local_copy(tiny()).parents[2])
    text = wsi("backbones", "fetch", "tiny", LITE0, code=1)  # the one that can be had is
    assert "no HF_TOKEN is set" in text
    assert weights_digest(find_weights(find_backbone(LITE0))) in text
    assert "no HF_TOKEN is set" in wsi("backbones", "fetch", "tiny", code=2)


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_a_bundle_carries_weights_licence_and_checksums_to_a_machine_without_a_hub(hub, tmp_path, kind):
    bundle = tmp_path / ("b.tar" if kind == "tar" else "b")
    wsi("backbones", "fetch", "tiny")
    assert "CC-BY-4.0" in wsi("backbones", "export", "tiny", LITE0, "-o", bundle)
    assert "it is there already" in wsi("backbones", "export", "tiny", "-o", bundle, code=2)
    here = {name: weights_digest(find_weights(find_backbone(name))) for name in ("tiny", LITE0)}
    shutil.rmtree(tmp_path / "cache")
    hub.fault = "503"
    wsi("backbones", "import", bundle)
    assert {path.name for path in (weights_home() / "tiny").iterdir()} == {
        "model.safetensors", "entry.json", "TERMS.txt", "README.md", "LICENSE",
    }  # fmt: skip
    for name, digest in here.items():
        found = find_weights(find_backbone(name), offline=True)
        assert found.parent == weights_home() / name
        assert weights_digest(found) == digest
    facts = json.loads((weights_home() / "tiny" / "entry.json").read_text())
    assert facts["commit"] == hub.repositories["lab/tiny"][-1][0]
    assert facts["licence"] == "CC-BY-4.0"
    assert facts["options"] == tiny().options
    wsi("backbones", "export", "tiny", LITE0, "-o", tmp_path / "again", "--offline")  # from what was imported
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "again", check=True, capture_output=True)


def test_the_same_weights_make_the_same_archive(hub, tmp_path):
    for name in ("one.tar", "two.tar"):
        wsi("backbones", "export", "tiny", "-o", tmp_path / name)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_imported_weights_of_another_revision_or_damaged_ones_are_not_used(hub, tmp_path, caplog):
    wsi("backbones", "export", "tiny", "-o", tmp_path / "b.tar")
    wsi("backbones", "import", tmp_path / "b.tar")
    logging.getLogger("embedding.weights").addHandler(caplog.handler)  # `wsi` has set the root's own
    newer = hub.commit("lab/tiny", model__safetensors=save({"w": torch.zeros(3)}))
    assert find_weights(tiny()).parent == weights_home() / "tiny"
    assert find_weights(tiny(revision=newer)).parent.name == newer
    assert "of another source or revision" in caplog.text
    logging.getLogger("embedding.weights").removeHandler(caplog.handler)
    (weights_home() / "tiny" / "model.safetensors").write_bytes(b"rotten")
    with pytest.raises(BackboneError, match=r"imported weights are damaged.*import"):
        find_weights(tiny())
    wsi("backbones", "import", tmp_path / "b.tar")
    assert find_weights(tiny()).stat().st_size > 1000


def repacked(bundle: Path, change) -> None:
    """The archive anew, of the (member, content) that `change` makes of its list of them."""
    with tarfile.open(bundle) as archive:
        items = [(member, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(bundle, "w") as archive:
        for member, content in change(items):
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def added(name: str, kind: bytes = tarfile.REGTYPE, target: str = ""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return lambda items: [*items, (member, b"" if target else b"x")]


def edited(name: str, edit):
    return lambda items: [(member, edit(content) if member.name == name else content) for member, content in items]


def other_facts(content: bytes) -> bytes:
    return json.dumps({**json.loads(content), "weights_sha256": "0" * 64}).encode()


def with_facts(change):
    """entry.json edited, and its new sum written, as someone who means it would."""

    def edit(items):
        contents = {member.name: content for member, content in items}
        old, new = contents["tiny/entry.json"], change(contents["tiny/entry.json"])
        sums = contents["SHA256SUMS"].replace(*(hashlib.sha256(text).hexdigest().encode() for text in (old, new)))
        changed = {"tiny/entry.json": new, "SHA256SUMS": sums}
        return [(member, changed.get(member.name, content)) for member, content in items]

    return edit


UNSOUND = {
    "a byte of the weights": (edited("tiny/model.safetensors", lambda data: data[:-1] + b"\1"), "damaged: its sha256"),
    "a licence left out": (lambda items: [item for item in items if "LICENSE" not in item[0].name], "tiny/LICENSE"),
    "a file put in": (added("tiny/more.py"), "tiny/more.py"),
    "no sums": (lambda items: items[:-1], "it has no SHA256SUMS"),
    "nothing but sums": (lambda items: [], "it has no SHA256SUMS"),
    "a path outwards": (added("../evil"), "'../evil', which has no place"),
    "an absolute path": (added("/tmp/evil"), "'/tmp/evil', which has no place"),
    "a hidden file": (added("tiny/.bashrc"), "no place in a bundle"),
    "a link": (added("tiny/link", tarfile.SYMTYPE, "/etc/passwd"), "no place in a bundle"),
    "a hard link": (added("tiny/link", tarfile.LNKTYPE, "/etc/passwd"), "no place in a bundle"),
    "a device": (added("tiny/null", tarfile.CHRTYPE, "x"), "no place in a bundle"),
    "facts of other weights": (with_facts(other_facts), "is not of the weights beside it"),
    "facts of another name": (with_facts(lambda data: data.replace(b'"tiny"', b'"uni"')), "is not of the weights"),
    "facts that are none": (with_facts(lambda data: b"[]"), "it is damaged"),
    "a weights file elsewhere": (
        with_facts(lambda data: data.replace(b'"weights_file": "model', b'"weights_file": "../model')),
        "does not name the weights file",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A bundle of a file given by hand."""
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch, hub_in_use(folder, patch) as server:
        server.commit("lab/tiny", model__safetensors=save(build(tiny(), None).network.state_dict()), LICENSE=b"terms")
        patch.setitem(BACKBONES, "tiny", tiny())
        wsi("backbones", "fetch", "tiny")
        wsi("backbones", "export", "tiny", "-o", folder / "b.tar")
    return folder / "b.tar"


@pytest.mark.parametrize("name", UNSOUND)
def test_an_unsound_bundle_is_refused_and_nothing_of_it_is_kept(sound, tmp_path, monkeypatch, name):
    monkeypatch.setenv("SLIDESTREAM_HOME", str(tmp_path / "home"))
    bundle = shutil.copy(sound, tmp_path / "b.tar")
    change, said = UNSOUND[name]
    repacked(bundle, change)
    assert said in wsi("backbones", "import", bundle, code=2)
    assert list(weights_home().iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "home"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])  # its end is padding
def test_a_cut_archive_or_none_is_refused(sound, tmp_path, monkeypatch, share):
    monkeypatch.setenv("SLIDESTREAM_HOME", str(tmp_path / "home"))
    whole = sound.read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: int(len(whole) * share)])
    assert "b.tar: it" in wsi("backbones", "import", tmp_path / "b.tar", code=2)
    assert "there is no such bundle" in wsi("backbones", "import", tmp_path / "none.tar", code=2)
    assert list(weights_home().iterdir()) == []


def test_a_folder_with_a_link_is_no_bundle(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("SLIDESTREAM_HOME", str(tmp_path / "home"))
    with tarfile.open(sound) as archive:
        archive.extractall(tmp_path / "b", filter="data")
    (tmp_path / "b" / "tiny" / "more").symlink_to("/etc/passwd")
    assert "no place in a bundle" in wsi("backbones", "import", tmp_path / "b", code=2)
    (tmp_path / "b" / "tiny" / "more").unlink()
    wsi("backbones", "import", tmp_path / "b")
    assert (weights_home() / "tiny").is_dir()


def test_weights_given_by_hand_can_be_carried_too(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIDESTREAM_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(BACKBONES, "tiny", tiny(weights="file:https://example.org/download"))
    torch.save(build(tiny(), None).network.state_dict(), tmp_path / "my weights (2).pth")
    given = ["--weights", tmp_path / "my weights (2).pth"]
    seen = wsi("backbones", "export", "tiny", "-o", tmp_path / "b.tar", *given)
    assert "its entry states none to compare with" in seen
    assert "are of one NAME" in wsi("backbones", "export", "tiny", LITE0, "-o", tmp_path / "c.tar", *given, code=2)
    wsi("backbones", "import", tmp_path / "b.tar")
    assert find_weights(tiny(weights="file:https://example.org/download")).read_bytes() == given[1].read_bytes()
    assert "https://example.org/download" in (weights_home() / "tiny" / "TERMS.txt").read_text()


def test_a_bundle_holds_no_weights_of_another_network_nor_ones_own(hub, tmp_path, monkeypatch):
    state = build(tiny(), None).network.state_dict()
    mine, other = tmp_path / "mine.safetensors", tmp_path / "other.safetensors"
    mine.write_bytes(save(state))
    other.write_bytes(save({**state, "foo.bar": torch.zeros(2)}))
    export = ["backbones", "export", "tiny", "-o", tmp_path / "b.tar", "--weights"]
    assert "1 tensor unknown (such as foo.bar)" in wsi(*export, other, code=2)
    export[2] = "madeleine"
    assert "not the weights of madeleine" in wsi(*export, other, code=2)
    export[2] = "tiny"
    monkeypatch.setitem(BACKBONES, "tiny", tiny(sha256="0" * 64))
    assert "copy your own weights as they are" in wsi(*export, mine, code=2)
    assert not (tmp_path / "b.tar").exists()
    verify = ["backbones", "verify", "tiny", "--device", "cpu", "--weights", mine]
    assert "with --own-weights" in wsi(*verify, code=2)
    assert "not that of the authors' file" in wsi(*verify, "--own-weights")


def test_golden_tiles_are_the_same_bytes_everywhere():
    tiles = golden_tiles(224)
    assert hashlib.sha256(tiles.tobytes()).hexdigest() == (
        "89e530fdb0fd36ac6f4f22488aa40be10156e7bec2bd464fc6aa788a5a0d0889"
    )
    assert tiles.shape == (4, 224, 224, 3)


def test_the_shipped_golden_vector_is_of_the_weights_own_package(tmp_path):
    """EfficientNet-Lite0 as its package builds and feeds it: (x - 127) / 128, last features averaged."""
    from efficientnet_lite_pytorch import EfficientNet

    backbone = find_backbone(LITE0)
    weights = find_weights(backbone)
    theirs = EfficientNet.from_pretrained(LITE0, weights_path=str(weights)).eval()
    with torch.inference_mode():
        pixels = (torch.from_numpy(golden_tiles(224)).permute(0, 3, 1, 2).float() - 127) / 128
        vectors = theirs.extract_features(pixels).mean(dim=(2, 3)).numpy()
    path = shipped(backbone, weights_digest(weights))
    assert path == SHIPPED / f"{LITE0}.json"
    assert np.abs(np.array(json.loads(path.read_text())["vectors"]) - vectors).max() < 1e-5
    assert shipped(backbone, "0" * 64) is None
    assert "same: cosine 1.000000" in wsi("backbones", "verify", LITE0, "--device", "cpu")


def test_what_one_machine_recorded_another_compares_with(hub, tmp_path):
    seen = wsi("backbones", "verify", "tiny", "--device", "cpu", "--record", tmp_path / "g.json")
    assert "none is known for these weights" in seen
    assert "all finite" in seen
    again = ["backbones", "verify", "tiny", "--device", "cpu", "--against", tmp_path / "g.json"]
    assert "same: cosine 1.000000" in wsi(*again)
    content = json.loads((tmp_path / "g.json").read_text())
    content["vectors"][1] = content["vectors"][0]
    (tmp_path / "g.json").write_text(json.dumps(content))
    assert "DIFFERENT" in wsi(*again, code=1)
    assert "variant cls, not mean" in wsi(*again, "--variant", "mean", code=2)
    (tmp_path / "g.json").write_text("{}")
    assert "it is no golden vector" in wsi(*again, code=2)


def test_embeddings_that_are_not_finite_are_never_called_the_same(hub, tmp_path):
    state = build(tiny(), None).network.state_dict()
    state["norm.weight"][3] = torch.nan
    (tmp_path / "w.safetensors").write_bytes(save(state))
    seen = wsi("backbones", "verify", "tiny", "--device", "cpu", "--weights", tmp_path / "w.safetensors", code=1)
    assert "NOT FINITE" in seen
    with pytest.raises(BackboneError, match="nothing is recorded"):
        write_golden(tiny(), "0", np.full((4, 48), np.nan, np.float32), tmp_path / "g.json", "")
    assert not (tmp_path / "g.json").exists()
