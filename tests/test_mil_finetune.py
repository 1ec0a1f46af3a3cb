"""Fine-tuning: what is changed, that it learns, that it goes on where it was, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

from embedding import Backbone, build
from embedding.adapter import Change, open_adapter
from embedding.networks import find_family
from mil.evaluation.estimate import Estimate
from mil.finetune import (
    PARTS,
    TEST,
    TRAIN,
    VALIDATION,
    Base,
    Cohort,
    FinetuneSpec,
    finetune,
    fit_probe,
    given_split,
    judge,
    plan,
    split_cohort,
)  # fmt: skip
from mil.finetune import loop as loop_module
from mil.finetune.augment import augment
from mil.finetune.loop import CHECKPOINT, schedule
from mil.finetune.parts import blocks_of, choose_change
from mil.finetune.probe import compare, verdict
from wsi.errors import BackboneError, SpecError

SIDE = 32
SPEC = FinetuneSpec(epochs=2, batch=8, rank=2, alpha=4.0, learning_rate=1e-3, folds=3, device="cpu", precision="fp32")


def entry(name="tiny", **fields) -> Backbone:
    """A ViT of timm's layout, with three blocks of width 48 and pictures of 32 px."""
    options = {"num_classes": 0, "depth": 3, "embed_dim": 48, "num_heads": 3, "img_size": SIDE}
    sizes = {"input_px": SIDE, "resize_px": SIDE, "tile_px": SIDE, "patch_px": 16}
    return Backbone(name, "vit_tiny_patch16_224", "file:none", 48, "MIT", "none", options=options, **sizes, **fields)


def based(folder, seed=0, backbone=None) -> Base:
    """Random weights of that layout, as a file."""
    backbone = backbone or entry()
    torch.manual_seed(seed)
    path = folder / f"weights-{seed}.safetensors"
    save_file(find_family(backbone.family).create(backbone).state_dict(), path)
    return Base(backbone, path)


def cohort_of(groups=6, each=6, slides=False, classes=2, seed=0) -> Cohort:
    """Groups of one class each, whose tiles are noise with stripes across or down; `each` tiles or, of 4, slides."""
    rng, truth, names, tiles = np.random.default_rng(seed), [], [], []
    pixels = rng.integers(100, 156, (groups * each * (4 if slides else 1), SIDE, SIDE, 3), dtype=np.uint8)
    for group in range(groups):
        for one in range(each):
            item, label = len(truth), group % classes
            mine = np.arange(4 * item, 4 * item + 4) if slides else np.array([item])
            for tile in mine:
                stripes = pixels[tile, ::4] if label else pixels[tile, ::4, ::4]
                stripes[...] = 230 if label else 20
            truth.append(label)
            names.append(f"g{group}-{one}")
            tiles.append(mine)
    groups_of = tuple(name.partition("-")[0] for name in names)
    return Cohort(
        tuple(f"class{n}" for n in range(classes)), np.array(truth), groups_of, tuple(names), lambda rows: pixels[rows],
        len(pixels), SIDE, 0.5, tuple(tiles) if slides else None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return based(tmp_path_factory.mktemp("base"))


def outputs(base, folder=None):
    pixels = torch.from_numpy(cohort_of().read(np.arange(6)))
    with torch.inference_mode():
        return build(base.backbone, base.weights, adapter=folder)(pixels)


@pytest.mark.parametrize("method", ["lora", "last-blocks"])
def test_a_fine_tuned_backbone_is_an_adapter_that_embeds_as_it_was_trained(method, base, tmp_path):
    cohort = cohort_of()
    parts = split_cohort(cohort, 3, 0)
    facts = finetune(cohort, parts, base, replace(SPEC, method=method, epochs=4), tmp_path / "out")
    assert not list((tmp_path / "out").glob(CHECKPOINT))
    adapter = open_adapter(tmp_path / "out")
    assert (adapter.backbone, adapter.base_sha256, adapter.change.method) == ("tiny", base.sha256, method)
    assert facts["best_epoch"] > 0
    assert not torch.allclose(outputs(base, tmp_path / "out"), outputs(base), atol=1e-3)
    rows = {row["name"]: row for row in facts["figures"]}
    assert list(rows) == ["probe on frozen embeddings", "probe on tuned embeddings", "tuned head"]
    assert facts["baseline"] == "probe on frozen embeddings"
    assert rows["tuned head"]["auroc"]["value"] >= 0.9  # stripes and spots are not hard
    assert facts["verdict"]
    said = [line.split(",") for line in (tmp_path / "out" / "split.csv").read_text().splitlines()[1:]]
    assert [line[3] for line in said] == [PARTS[part] for part in parts]


@pytest.mark.parametrize("pick", ["sampled", "top"])
def test_slide_labels_train_the_backbone_through_an_attention_head(pick, base, tmp_path):
    cohort = cohort_of(each=3, slides=True)
    parts = split_cohort(cohort, 3, 0)
    spec = replace(SPEC, labels="slides", tiles=3, batch=2, pick=pick, checkpointing=True, learning_rate=5e-3)
    facts = finetune(cohort, parts, base, spec, tmp_path / "out")
    assert facts["baseline"] == "attention head on frozen embeddings"
    assert len(facts["figures"]) == 4
    rows = (tmp_path / "out" / "test.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 * int((parts == TEST).sum())
    assert facts["memory"]["tiles"] == 3


def test_gradients_are_the_same_with_checkpointing(base, tmp_path):
    cohort, made = cohort_of(), []
    parts = split_cohort(cohort, 3, 0)
    for checkpointing in (False, True):
        spec = replace(SPEC, epochs=1, checkpointing=checkpointing)
        finetune(cohort, parts, base, spec, tmp_path / str(checkpointing))
        made.append(outputs(base, tmp_path / str(checkpointing)))
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-5)


def test_last_blocks_changes_them_and_what_follows_and_nothing_else(base, tmp_path):
    cohort = cohort_of()
    spec = replace(SPEC, method="last-blocks", blocks=1, epochs=3)
    finetune(cohort, split_cohort(cohort, 3, 0), base, spec, tmp_path / "out")
    before = build(base.backbone, base.weights).network.state_dict()
    after = build(base.backbone, base.weights, adapter=tmp_path / "out").network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("blocks.2.", "norm.")) for name in changed)
    assert set(open_adapter(tmp_path / "out").change.targets) >= changed


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(stop, base, tmp_path, monkeypatch):
    cohort = cohort_of()
    parts, spec = split_cohort(cohort, 3, 0), replace(SPEC, epochs=3)
    finetune(cohort, parts, base, spec, tmp_path / "whole")
    real, calls = loop_module._epoch, []

    def interrupted(*arguments):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(cohort, parts, base, spec, tmp_path / "broken")
    assert (tmp_path / "broken" / CHECKPOINT).is_file()
    with pytest.raises(SpecError, match="an unfinished run with other settings"):
        finetune(cohort, parts, base, replace(spec, seed=9), tmp_path / "broken")
    finetune(cohort, parts, base, spec, tmp_path / "broken")
    assert open_adapter(tmp_path / "broken").digest == open_adapter(tmp_path / "whole").digest
    assert (tmp_path / "broken" / "training.csv").read_text() == (tmp_path / "whole" / "training.csv").read_text()


def test_a_finished_run_is_not_done_again_and_no_other_takes_its_place(base, tmp_path):
    cohort = cohort_of()
    parts, spec = split_cohort(cohort, 3, 0), replace(SPEC, epochs=1)
    first = finetune(cohort, parts, base, spec, tmp_path / "out")
    changed = (tmp_path / "out" / "adapter.json").stat().st_mtime_ns
    assert finetune(cohort, parts, base, spec, tmp_path / "out")["run"] == first["run"]
    assert (tmp_path / "out" / "adapter.json").stat().st_mtime_ns == changed
    with pytest.raises(SpecError, match="an adapter of other settings"):
        finetune(cohort, parts, base, replace(spec, rank=3), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(SpecError, match=r"it holds other things, such as thesis\.tex"):
        finetune(cohort, parts, base, spec, tmp_path / "mine")


def test_where_no_epoch_helps_the_frozen_backbone_is_kept_and_the_verdict_does_not_claim_a_gain(base, tmp_path):
    cohort = cohort_of(groups=8, each=4)
    rng = np.random.default_rng(0)
    cohort = replace(cohort, read=lambda rows: rng.integers(0, 255, (len(rows), SIDE, SIDE, 3), dtype=np.uint8))
    spec = replace(SPEC, learning_rate=0.5, patience=1)  # nothing can be learned, and what is known is destroyed
    facts = finetune(cohort, split_cohort(cohort, 4, 0), base, spec, tmp_path / "out")
    assert facts["best_epoch"] == 0
    torch.testing.assert_close(outputs(base, tmp_path / "out"), outputs(base), rtol=1e-4, atol=1e-4)
    assert "gains" not in facts["verdict"]


def test_the_plan_states_what_is_trained_and_memory_grows_with_the_batch(base):
    cohort = cohort_of()
    parts = split_cohort(cohort, 3, 0)
    change, memory = plan(cohort, parts, base, SPEC)
    assert len(change.targets) == 6  # qkv and proj of three blocks
    assert memory.trained == 3 * 2 * ((48 + 144) + (48 + 48)) + 48 * 2 + 2  # thin factors of each, and the head
    network = sum(value.numel() for value in build(base.backbone, base.weights).network.parameters())
    assert memory.parameters == network + memory.trained
    double = plan(cohort, parts, base, replace(SPEC, batch=16))[1]
    assert double.activations == 2 * memory.activations
    assert "parameters are trained" in memory.in_words()


@pytest.mark.parametrize(
    ("arch", "options", "first", "count", "after"),
    [
        ("vit_tiny_patch16_224", {}, "blocks.0", 12, "norm"),
        ("tf_efficientnet_lite0", {}, "blocks.0.0", 16, "conv_head"),
        ("resnet18", {}, "layer1.0", 8, "global_pool"),
        ("swin_tiny_patch4_window7_224", {}, "layers.0.blocks.0", 12, "norm"),
        ("eva02_tiny_patch14_224", {}, "blocks.0", 12, "norm"),
    ],
)
def test_the_blocks_of_a_network_are_found_in_order(arch, options, first, count, after):
    with torch.device("meta"):
        network = find_family("timm").create(replace(entry(), arch=arch, options={"num_classes": 0, **options}))
    blocks, rest = blocks_of(network)
    assert (blocks[0], len(blocks)) == (first, count)
    assert after in rest
    for method in ("lora", "last-blocks"):
        change = choose_change(network, FinetuneSpec(method=method, blocks=1))
        assert change.targets
        assert all(name.startswith((blocks[-1] + ".", *rest)) for name in change.targets)


def test_more_blocks_than_there_are_and_a_network_without_any_are_refused():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(BackboneError, match="no blocks that are known"):
        blocks_of(network)
    with torch.device("meta"):
        small = find_family("timm").create(entry())
    with pytest.raises(BackboneError, match="has 3 blocks, not 4"):
        choose_change(small, FinetuneSpec(method="last-blocks", blocks=4))


def test_weights_that_take_no_part_are_an_error_and_not_trained_in_silence(base, tmp_path, monkeypatch):
    def elsewhere(network, spec):
        network.spare = torch.nn.Linear(3, 3)
        return Change("lora", ("blocks.2.attn.qkv", "spare"), 2, 4.0)

    monkeypatch.setattr("mil.finetune.run.choose_change", elsewhere)
    cohort = cohort_of()
    with pytest.raises(BackboneError, match="2 of 4 trained tensors take no part"):
        finetune(cohort, split_cohort(cohort, 3, 0), base, SPEC, tmp_path / "out")


def test_groups_are_never_parted_and_every_part_has_every_class():
    cohort = cohort_of(groups=12, each=3, classes=3)
    parts = split_cohort(cohort, 4, 1)
    by_group = {group: {parts[i] for i, g in enumerate(cohort.groups) if g == group} for group in cohort.groups}
    assert all(len(found) == 1 for found in by_group.values())
    assert all(set(cohort.truth[parts == part]) == {0, 1, 2} for part in (TRAIN, VALIDATION, TEST))
    assert (split_cohort(cohort, 4, 1) == parts).all()
    tests = [set(np.flatnonzero(split_cohort(cohort, 4, 1, fold) == TEST)) for fold in range(4)]
    assert set.union(*tests) == set(range(len(cohort)))


def test_a_stated_split_is_taken_and_one_that_leaks_is_refused():
    cohort = cohort_of(groups=8, each=2)
    said = ["test" if group in ("g0", "g1") else "train" for group in cohort.groups]
    parts = given_split(cohort, said, 5, 0)
    assert [part == TEST for part in parts] == [word == "test" for word in said]
    held = {cohort.groups[i] for i in np.flatnonzero(parts == VALIDATION)}
    assert held
    assert not held & {cohort.groups[i] for i in np.flatnonzero(parts == TRAIN)}
    leaking = [*said[:-1], "test"]
    with pytest.raises(SpecError, match="its group 'g7' is in train and in test"):
        given_split(cohort, leaking, 5, 0)
    with pytest.raises(SpecError, match="'holdout' is no part"):
        given_split(cohort, ["holdout", *said[1:]], 5, 0)
    with pytest.raises(SpecError, match="test has nothing of class 'class1'"):
        given_split(cohort, ["test" if group == "g0" else "train" for group in cohort.groups], 5, 0)


def test_one_class_and_too_few_groups_are_refused():
    with pytest.raises(SpecError, match="all 12 items are of one class"):
        cohort_of(groups=2, classes=1)
    with pytest.raises(SpecError, match=r"class 'class0' has 2 group\(s\)"):
        split_cohort(cohort_of(groups=4), 5, 0)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_is_scikit_learns_and_its_figures_are_those_of_its_outputs(classes):
    rng = np.random.default_rng(0)
    truth = np.arange(120) % classes
    features = rng.normal(size=(120, 10)) + 0.8 * np.eye(10)[truth]
    parts = np.repeat([TRAIN, VALIDATION, TEST], 40).astype(np.int8)
    probe = fit_probe(features, truth, parts, classes)
    model = LogisticRegression(C=probe.strength, class_weight="balanced", max_iter=500)
    model.fit((features[:40] - probe.mean) / probe.std, truth[:40])
    expected = model.predict_proba((features - probe.mean) / probe.std)
    np.testing.assert_allclose(probe.softmax(features), expected, atol=1e-6)
    figures = judge("probe", expected[80:], truth[80:], [f"p{i // 2}" for i in range(40)])
    recall = [(expected[80:].argmax(1) == truth[80:])[truth[80:] == c].mean() for c in range(classes)]
    assert figures.balanced_accuracy.value == pytest.approx(np.mean(recall))
    assert figures.auroc.low < figures.auroc.value < figures.auroc.high


def test_a_difference_is_paired_and_a_gain_is_claimed_only_where_its_interval_says_so():
    truth = np.arange(200) % 2
    rng, groups = np.random.default_rng(0), [f"p{i // 2}" for i in range(200)]
    weak = rng.normal(size=200) + 0.8 * truth
    good = weak + 1.5 * truth
    two = [np.stack([-score, score], axis=1) for score in (weak, good)]
    assert "gains" in verdict(compare(two[1], two[0], truth, groups)["auroc"], 100)
    assert "worse" in verdict(compare(two[0], two[1], truth, groups)["auroc"], 100)
    assert "no gain is shown" in verdict(Estimate(0.01, -0.02, 0.04), 30)
    assert "can be shown: why" in verdict(Estimate(0.01, reason="why"), 30)
    assert "on 4 held-out groups, too few" in verdict(Estimate(0.1, 0.05, 0.2), 4)


def test_augmentation_turns_and_flips_and_is_the_same_for_the_same_seed():
    pixels = torch.arange(3 * 16, dtype=torch.uint8).view(1, 3, 4, 4).repeat(64, 1, 1, 1)
    made = augment(pixels, 0.0, torch.Generator().manual_seed(1))
    assert len({tuple(one.flatten().tolist()) for one in made}) == 8
    assert (made.flatten(1).sort(1).values == pixels.float().flatten(1).sort(1).values).all()
    coloured = augment(pixels, 0.1, torch.Generator().manual_seed(1))
    assert torch.equal(coloured, augment(pixels, 0.1, torch.Generator().manual_seed(1)))
    ratio = coloured[made > 0] / made[made > 0]
    assert 0.8 <= ratio.min() < ratio.max() <= 1.21


def test_the_learning_rate_rises_then_falls_to_nothing():
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1
    assert rates[99] < 0.001


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "full"}, "choose lora, last-blocks"), ({"rank": 0}, "at least 1"), ({"folds": 2}, "at least 3"),
        ({"jitter": 0.9}, "give 0 to 0.5"), ({"learning_rate": 0.0}, "out of range"), ({"alpha": 0.0}, "out of range"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(fields, said):
    with pytest.raises(SpecError, match=said):
        FinetuneSpec(**fields)


def test_dense_embeddings_are_refused(tmp_path, base):
    dense = replace(base, backbone=replace(base.backbone, pooling="dense"))
    cohort = cohort_of()
    with pytest.raises(SpecError, match="a vector for each patch token"):
        finetune(cohort, split_cohort(cohort, 3, 0), dense, SPEC, tmp_path / "out")


def test_the_facts_of_an_adapter_are_plain_json_and_name_classes_settings_and_versions(base, tmp_path):
    cohort = cohort_of()
    finetune(cohort, split_cohort(cohort, 3, 0), base, replace(SPEC, epochs=1), tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "adapter.json").read_text())
    assert facts["classes"] == ["class0", "class1"]
    assert facts["settings"]["rank"] == 2
    assert {"torch", "timm", "peft"} == set(facts["versions"])
    assert facts["peak_bytes"] > facts["memory"]["weights"]
