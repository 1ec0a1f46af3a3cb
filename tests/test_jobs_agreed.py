"""The precision that machines with other chips would choose otherwise is chosen once for a run folder."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedding.spec import EmbedSpec
from jobs import agreed as module
from jobs.agreed import agreed
from jobs.folder import RunFolder
from wsi import StoreError


def test_the_first_worker_chooses_for_all(tmp_path, monkeypatch):
    folder, spec = RunFolder(tmp_path), EmbedSpec("virchow2")
    assert agreed(spec, folder) == spec  # nobody embeds yet
    monkeypatch.setattr(module, "precision_of", lambda spec: "bf16")
    assert agreed(spec, folder, choose=True).precision == "bf16"
    monkeypatch.setattr(module, "precision_of", lambda spec: "fp16")
    assert agreed(spec, folder, choose=True).precision == "bf16"
    assert agreed(spec, folder).precision == "bf16"
    assert agreed(EmbedSpec("uni"), folder, choose=True).precision == "fp16"  # another backbone's is another matter
    assert agreed(EmbedSpec("virchow2", precision="fp32"), folder, choose=True).precision == "fp32"


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_choose_at_once_all_take_the_same(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *args, **more: (_ for _ in ()).throw(PermissionError("no links here")))
    choices = iter(["bf16", "fp16", "fp32"] * 20)
    monkeypatch.setattr(module, "precision_of", lambda spec: next(choices))
    spec, folder = EmbedSpec("virchow2"), RunFolder(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: agreed(spec, folder, choose=True).precision, range(40)))
    assert len(set(found)) == 1
    assert [path.name[:10] for path in (tmp_path / "lists").iterdir()] == ["precision-"]


def test_a_damaged_choice_is_named(tmp_path):
    folder, spec = RunFolder(tmp_path), EmbedSpec()
    agreed(spec, folder, choose=True)
    next((tmp_path / "lists").iterdir()).write_text("fp9")
    with pytest.raises(StoreError, match="'fp9' is no precision"):
        agreed(spec, folder)
