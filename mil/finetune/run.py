"""From a cohort to an adapter's folder: frozen figures, training, the merged backbone, tuned figures."""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedding.adapter import FACTS, Change, open_adapter, write_adapter
from embedding.backbone import Backbone
from embedding.devices import find_devices
from embedding.loader import build
from embedding.precision import choose_precision
from embedding.weights import weights_digest
from wsi.errors import SpecError
from wsi.publish import appear, appear_file, fingerprint, write_json

from .cohort import PARTS, Cohort
from .loop import CHECKPOINT, Run, State, Watcher, item_logits, tune, warm_head
from .memory import Memory, estimate, peak_bytes, start_measuring
from .network import Tuned, embed_tiles, slide_head, tile_head
from .parts import choose_change, prepare, set_checkpointing
from .probe import Figures, Probe, compare, fit_probe, judge, softmax, standard, test_part, verdict
from .spec import FinetuneSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

SPLIT, HISTORY, HEAD, OUTPUTS = "split.csv", "training.csv", "head.safetensors", "test.csv"
_OURS = {CHECKPOINT, SPLIT, HISTORY, HEAD, OUTPUTS, FACTS, "adapter_config.json", "adapter_model.safetensors",
         "adapter.safetensors"}  # fmt: skip


@dataclass(frozen=True)
class Base:
    """The backbone that training begins with: its entry, of the wanted variant, and its weights file.

    kept  folder for its embeddings of a cohort, to be used again by other trainings; None keeps them beside the
          adapter until that is finished
    """

    backbone: Backbone
    weights: Path
    kept: Path | None = None

    @property
    def sha256(self) -> str:
        return weights_digest(self.weights)


@dataclass(frozen=True)
class Judged:
    """Outputs of the frozen backbone for all items: embeddings float32 (n, d) of all tiles, the probe on them, and
    softmax (m, C) of what fine-tuning is compared with."""

    features: NDArray[np.float32]
    probe: Probe
    rows: Mapping[str, NDArray[np.float64]]


def plan(cohort: Cohort, parts: NDArray[np.int8], base: Base, spec: FinetuneSpec) -> tuple[Change, Memory]:
    """What would be trained, and what a step needs of memory; builds the network, trains nothing."""
    with _network(cohort, base, spec) as (tuned, change, _):
        return change, estimate(tuned, cohort, spec)


def finetune(
    cohort: Cohort, parts: NDArray[np.int8], base: Base, spec: FinetuneSpec, out: Path, watcher: Watcher | None = None
) -> Mapping[str, Any]:
    """Fine-tune, and publish the adapter as the folder `out`; returns its facts, figures among them.

    What an interrupted run left in `out` is gone on with. A finished one with the same settings is returned as it is.
    Raises SpecError where `out` holds anything else, BackboneError where weights and method do not fit.
    """
    mark = fingerprint(spec, cohort.mark(), parts.tolist(), base.backbone.name, base.backbone.pooling, base.sha256)
    if (there := check_out(out, mark)) is not None:
        return there
    out.mkdir(parents=True, exist_ok=True)
    watcher = watcher or Watcher()
    with _network(cohort, base, spec) as (tuned, change, trained):
        start_measuring(tuned.device)
        memory = estimate(tuned, cohort, spec)
        watcher.say(memory.in_words())
        frozen = _frozen(tuned, cohort, parts, _frozen_file(cohort, base, out, tuned.precision), (spec, watcher))
        state = tune(tuned, cohort, parts, trained, spec, Run(out, mark, watcher))
        peak = peak_bytes(tuned.device)
        facts = _facts(cohort, parts, spec, state, mark) | {"memory": asdict(memory), "peak_bytes": peak}
        with appear(out) as draft:
            _write(draft, tuned, change, base, facts)
            figures = _judge(draft, tuned, frozen, (cohort, parts, base, spec), watcher)
            _write_tables(draft, cohort, parts, state)
            write_json(draft / FACTS, {**open_adapter(draft).facts, **figures})
    return open_adapter(out).facts


def check_out(out: Path, mark: str | None) -> Mapping[str, Any] | None:
    """The facts of a finished run with these settings, None where there is room for one. Raises SpecError otherwise.

    mark  of the settings; None asks only whether the folder is one that may be written
    """
    if not out.exists():
        return None
    remedy = "choose another --out"
    if not out.is_dir():
        raise SpecError(out, "it is a file", remedy)
    others = [entry.name for entry in out.iterdir() if entry.name not in _OURS and not entry.name.startswith(".")]
    if others:
        raise SpecError(
            out, f"it holds other things, such as {sorted(others)[0]}", f"{remedy}: an adapter's is its own"
        )
    if not (out / FACTS).exists():
        return None
    facts = open_adapter(out).facts
    if mark is not None and facts.get("run") != mark:
        raise SpecError(out, "an adapter of other settings, data or weights is there", f"{remedy}, or remove it")
    return facts


@contextmanager
def _network(cohort: Cohort, base: Base, spec: FinetuneSpec) -> "Iterator[tuple[Tuned, Change, list[nn.Parameter]]]":
    """The network with its change put in, not yet standardised, and its head not yet fitted; the random state is put
    back afterwards."""
    backbone = base.backbone
    if len(backbone.row_shape) > 1:
        problem = "its embeddings are dense: a vector for each patch token, not one for each tile"
        raise SpecError("variant", problem, "fine-tune another variant, such as cls or mean")
    device = find_devices(spec.device)[0]
    precision = choose_precision(spec.precision, backbone, device) if device.startswith("cuda") else spec.precision
    precision = "bf16" if precision == "bf16" else "fp32"
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        embedder = build(backbone, base.weights, device, "fp32")
        change = choose_change(embedder.network, spec)
        trained = prepare(embedder.network, change)
        set_checkpointing(embedder.network, spec.checkpointing)
        dim, classes = backbone.dim, len(cohort.classes)
        head = slide_head(dim, classes) if cohort.of_slides else torch.nn.Linear(dim, classes)
        yield Tuned(embedder, head, (np.zeros(dim), np.ones(dim)), precision), change, trained


def _frozen_file(cohort: Cohort, base: Base, out: Path, precision: str) -> Path:
    mark = fingerprint(cohort.mark(), base.backbone.name, base.backbone.pooling, base.sha256, precision)
    return (base.kept or out) / f".frozen-{mark}.npy"


def _frozen(
    tuned: Tuned, cohort: Cohort, parts: NDArray[np.int8], kept: Path, how: tuple[FinetuneSpec, Watcher]
) -> Judged:
    """Judge the backbone as it is, and give the network the head that it begins with. What `prepare` put in changes
    nothing yet: LoRA's second factor is zero. The embeddings are kept, so that a run that goes on need not make them
    again.
    """
    spec, watcher = how
    if kept.is_file():
        features = np.load(kept, allow_pickle=False)
    else:
        features = _embed_all(tuned, cohort, spec, watcher, "frozen embeddings")
        with appear_file(kept) as draft, draft.open("wb") as stream:
            np.save(stream, features, allow_pickle=False)
    items = _items(cohort, features)
    probe = fit_probe(items, cohort.truth, parts, len(cohort.classes))
    rows = {"probe on frozen embeddings": probe.softmax(items)}
    train = np.concatenate([cohort.tiles_of(int(item)) for item in np.flatnonzero(parts == PARTS.index("train"))])
    mean, std = standard(features[train])
    tuned.mean.copy_(torch.from_numpy(mean))
    tuned.std.copy_(torch.from_numpy(std))
    if cohort.of_slides:
        warm_head(tuned, features, cohort, parts, spec)
        rows["attention head on frozen embeddings"] = _of_slides(tuned, cohort, features)
    else:
        tuned.head.load_state_dict(tile_head(probe).state_dict())
    return Judged(features, probe, rows)


def _of_slides(tuned: Tuned, cohort: Cohort, features: NDArray[np.float32]) -> NDArray[np.float64]:
    tuned.head.eval()
    with torch.inference_mode():
        bags = (torch.from_numpy(features[cohort.tiles_of(i)]).to(tuned.device) for i in range(len(cohort)))
        return softmax(torch.cat([tuned.logits(bag) for bag in bags]).cpu().numpy())


def _judge(
    folder: Path,
    tuned: Tuned,
    frozen: Judged,
    job: tuple[Cohort, NDArray[np.int8], Base, FinetuneSpec],
    watcher: Watcher,
) -> dict[str, Any]:
    """Figures on the test items: of the frozen backbone, and of the one that the adapter's folder gives when loaded."""
    cohort, parts, base, spec = job
    trained = tuned.embedder
    tuned.embedder = build(base.backbone, base.weights, tuned.device, "fp32", folder)  # as `wsi embed --adapter` does
    features = _embed_all(tuned, cohort, spec, watcher, "tuned embeddings")
    items, test = _items(cohort, features), test_part(parts)
    probe = fit_probe(items, cohort.truth, parts, len(cohort.classes))
    rows = dict(frozen.rows) | {"probe on tuned embeddings": probe.softmax(items)}
    if cohort.of_slides:
        rows["tuned head"] = _of_slides(tuned, cohort, features)
    else:
        rows["tuned head"] = softmax(item_logits(tuned, cohort, np.arange(len(cohort)), spec))
    tuned.embedder = trained
    groups, truth = [cohort.groups[i] for i in test], cohort.truth[test]
    baseline = list(frozen.rows)[-1]
    against = compare(rows["tuned head"][test], rows[baseline][test], truth, groups)
    probes = compare(rows["probe on tuned embeddings"][test], rows["probe on frozen embeddings"][test], truth, groups)
    figures: list[Figures] = [judge(name, said[test], truth, groups) for name, said in rows.items()]
    _write_outputs(folder / OUTPUTS, cohort, test, rows)
    return {
        "figures": [one.as_dict() for one in figures],
        "baseline": baseline,
        "gain": {name: asdict(one) for name, one in against.items()},
        "gain_of_probe": {name: asdict(one) for name, one in probes.items()},
        "verdict": verdict(against["auroc"], len(set(groups))),
        "strengths": {"frozen": frozen.probe.strength, "tuned": probe.strength},
    }


def _items(cohort: Cohort, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """An embedding for each item: a tile's own, the mean of a slide's."""
    if not cohort.of_slides:
        return features
    return np.stack([features[cohort.tiles_of(item)].mean(axis=0) for item in range(len(cohort))])


def _embed_all(tuned: Tuned, cohort: Cohort, spec: FinetuneSpec, watcher: Watcher, note: str) -> NDArray[np.float32]:
    """Embeddings of all tiles as the network makes them now: float32 (n, d)."""
    batch = spec.tiles if cohort.of_slides else spec.batch
    return embed_tiles(
        tuned, cohort, np.arange(cohort.count), batch, lambda done: watcher.step(done, cohort.count, note)
    )


def _facts(cohort: Cohort, parts: NDArray[np.int8], spec: FinetuneSpec, state: State, mark: str) -> dict[str, Any]:
    best = min(range(len(state.history)), key=lambda row: state.history[row]["validation"])
    return {
        "run": mark,
        "labels": spec.labels,
        "classes": list(cohort.classes),
        "parts": {name: cohort.in_words(np.flatnonzero(parts == part)) for part, name in enumerate(PARTS)},
        "tile_px": cohort.tile_px,
        "mpp": cohort.mpp,
        "settings": asdict(spec),
        "epochs": state.epoch,
        "best_epoch": best,
        "versions": {name: version(name) for name in ("torch", "timm", *(["peft"] if spec.method == "lora" else []))},
    }


def _write(folder: Path, tuned: Tuned, change: Change, base: Base, facts: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    write_adapter(folder, tuned.embedder.network, change, (base.backbone, base.sha256), facts)
    state = {name: value.detach().cpu().contiguous() for name, value in tuned.head.state_dict().items()}
    save_file(state | {"mean": tuned.mean.cpu(), "std": tuned.std.cpu()}, folder / HEAD)


def _write_outputs(file: Path, cohort: Cohort, test: NDArray[np.intp], rows: Mapping[str, NDArray[np.float64]]) -> None:
    """A line for each test item and model: its softmax, not yet calibrated, of each class."""
    import csv

    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("name", "group", "label", "model", *(f"softmax_{name}" for name in cohort.classes)))
        for model, outputs in rows.items():
            for item in test.tolist():
                said = (f"{value:.6g}" for value in outputs[item])
                writer.writerow(
                    (cohort.names[item], cohort.groups[item], cohort.classes[cohort.truth[item]], model, *said)
                )


def _write_tables(folder: Path, cohort: Cohort, parts: NDArray[np.int8], state: State) -> None:
    import csv

    with (folder / SPLIT).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("name", "group", "label", "part"))
        for name, group, label, part in zip(cohort.names, cohort.groups, cohort.truth, parts, strict=True):
            writer.writerow((name, group, cohort.classes[label], PARTS[part]))
    with (folder / HISTORY).open("w", newline="", encoding="utf-8") as stream:
        rows = csv.DictWriter(stream, ("epoch", "loss", "validation"))
        rows.writeheader()
        rows.writerows(state.history)
