"""Training of multiple-instance heads on bags of 10,000 tiles x 1024: loading, a training step, memory.

Loading is measured against the HDF5 layout of CLAM and TRIDENT and against torch.load; the step against plain float32
and against CLAM_SB's loop. All on one thread and in turns; files are in the page cache; medians.

python benchmarks/bench_mil.py [--repeats 5] [--cohort-gb 2] [--folder DIR]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedding.precision import cpu_flags
from mil.bag import Bag
from mil.batches import BatchSpec, batches
from mil.cohort import open_cohort, write_cohort
from mil.heads import build_head
from mil.spec import HeadSpec, TaskSpec, TrainSpec
from mil.tasks import make_task
from mil.train import Part, Trainer

TILES, DIM, HIDDEN, ATTENTION, DROPOUT = 10_000, 1024, 512, 256, 0.25  # CLAM's "small"
LOAD_MS, STEP_RATIO, CLAM_RATIO = 20, 3, 5  # targets
HEADROOM_MB = 1024  # of private memory that a pass over a larger cohort may use


class Cost(NamedTuple):
    """Medians over rounds, in milliseconds."""

    cpu: float
    wall: float


def in_turns(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Cost]:
    """Each once in every round, after one that is not counted: what else the machine does hits all alike."""
    taken: dict[str, list[Cost]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, run in contenders.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            taken[name].append(Cost(1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)))
    middle = statistics.median
    return {
        name: Cost(middle(one.cpu for one in costs[1:]), middle(one.wall for one in costs[1:]))
        for name, costs in taken.items()
    }


def show(title: str, costs: Mapping[str, Cost]) -> None:
    print(f"\n{title}")
    for name, cost in costs.items():
        print(f"  {name:<58} {cost.cpu:7.1f} ms CPU {cost.wall:7.1f} ms wall")


def verdict(what: str, ratio: float, target: float) -> None:
    print(f"  {what}: {ratio:.1f}x, target {target}x: {'met' if ratio >= target else 'NOT met'}")


def bags_of(count: int) -> Iterator[Bag]:
    """`count` bags of normal noise, two classes in turn, one bag in memory at a time."""
    base = np.random.default_rng(0).standard_normal((TILES, DIM), np.float32).astype(np.float16)
    xy = np.stack(np.divmod(np.arange(TILES), 100), axis=1) * 256
    for number in range(count):
        yield Bag(np.roll(base, 7 * number, axis=1), xy, 256, (f"s{number}",), label="ab"[number % 2])


# --- theirs, restated -------------------------------------------------------------------------------------------------


def write_theirs(folder: Path, features: np.ndarray) -> None:
    """One bag as CLAM and TRIDENT store it: HDF5 that grows tile by tile, so a chunk is one vector; and a .pt file."""
    values = features.astype(np.float32)
    with h5py.File(folder / "bag.h5", "w") as file:
        store = file.create_dataset("features", values.shape, "f4", chunks=(1, DIM), maxshape=(None, DIM))
        store[:] = values
    with h5py.File(folder / "bag16.h5", "w") as file:
        file.create_dataset("features", data=features, chunks=(1, DIM), maxshape=(None, DIM))
    torch.save(torch.from_numpy(values), folder / "bag.pt")


def read_h5(path: Path) -> Tensor:
    with h5py.File(path, "r") as file:
        return torch.from_numpy(file["features"][:]).float()


class ClamSB(nn.Module):
    """CLAM_SB as its authors train it (Lu et al., Nature Biomedical Engineering 2021; github.com/mahmoodlab/CLAM):
    gated attention with dropout in both branches, and an instance loss on the 8 tiles at either end of attention.
    """

    def __init__(self, k: int = 8):
        super().__init__()
        self.k = k
        self.project = nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT))
        self.value = nn.Sequential(nn.Linear(HIDDEN, ATTENTION), nn.Tanh(), nn.Dropout(DROPOUT))
        self.gate = nn.Sequential(nn.Linear(HIDDEN, ATTENTION), nn.Sigmoid(), nn.Dropout(DROPOUT))
        self.score, self.classify = nn.Linear(ATTENTION, 1), nn.Linear(HIDDEN, 2)
        self.instance = nn.ModuleList(nn.Linear(HIDDEN, 2) for _ in range(2))

    def forward(self, features: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (1, 2) and the instance loss of one bag (N, D)."""
        hidden = self.project(features)
        attention = self.score(self.value(hidden) * self.gate(hidden)).T.softmax(dim=1)  # (1, N)
        ends = torch.cat([attention.topk(self.k).indices[0], (-attention).topk(self.k).indices[0]])
        target = torch.tensor([1] * self.k + [0] * self.k)
        loss = smooth_top1_svm(self.instance[int(label)](hidden[ends]), target)
        return self.classify(attention @ hidden), loss


def smooth_top1_svm(scores: Tensor, target: Tensor) -> Tensor:
    """The smooth multi-class hinge loss, margin and temperature 1 (Berrada, Zisserman & Kumar, ICLR 2018, k = 1)."""
    margin = 1 - functional.one_hot(target, scores.shape[1])
    return ((scores + margin).logsumexp(dim=1) - scores.gather(1, target[:, None])[:, 0]).mean()


def clam_loop(read: Callable[[], Tensor]) -> Callable[[], None]:
    """One turn of CLAM's loop: read the bag, copy it as the collate function does, step."""
    torch.manual_seed(0)
    model = ClamSB().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-5)

    def run() -> None:
        label = torch.tensor([1])
        logits, instance_loss = model(torch.cat([read()]), label)
        loss = 0.7 * functional.cross_entropy(logits, label) + 0.3 * instance_loss
        loss.item(), instance_loss.item()  # as it logs them
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return run


# --- ours -------------------------------------------------------------------------------------------------------------


def load(bags: list[Bag], dtype: str) -> Callable[[], None]:
    spec = BatchSpec(dtype=dtype)

    def run() -> None:
        for _ in batches(bags[:1], [0], spec, np.random.default_rng(0)):
            pass

    return run


def resident_step(dtype: torch.dtype) -> Callable[[], None]:
    """Gated ABMIL on a bag in memory, standardised already: forward, backward, AdamW; bfloat16 under autocast."""
    torch.manual_seed(0)
    head = build_head(HeadSpec("abmil", DIM, 2, HIDDEN, ATTENTION, DROPOUT)).train()
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-4)
    features, mask = torch.randn(1, TILES, DIM).to(dtype), torch.ones(1, TILES, dtype=torch.bool)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            logits = head(features, mask).logits
        functional.cross_entropy(logits.float(), torch.tensor([1])).backward()
        optimiser.step()
        optimiser.zero_grad()

    return run


def trainer(bags: list[Bag], instances: int, precision: str) -> Trainer:
    """What `wsi train` trains with: loader, standardisation, autocast, clipping, AdamW."""
    spec = TrainSpec(
        head="abmil", hidden=HIDDEN, attention=ATTENTION, dropout=DROPOUT,
        batch=1, accumulate=1, instances=instances, precision=precision,
    )  # fmt: skip
    task = make_task(TaskSpec(), bags)
    torch.manual_seed(0)
    made = Trainer(Part(bags, task.truth(bags)), task, spec.head_spec(DIM, task.outputs), spec, "cpu")
    made.network.fit(torch.from_numpy(np.array(bag.features)) for bag in bags[:2])
    return made


def trained_step(bags: list[Bag], instances: int, precision: str) -> Callable[[], object]:
    """An epoch over the bags, read from the cohort's file: a step for each."""
    made, rng = trainer(bags, instances, precision), np.random.default_rng(0)
    return lambda: made.run_epoch(rng)


def products(dtype: torch.dtype) -> Callable[[], None]:
    """The matrix products of one step and nothing else: what no way of writing the rest can save."""
    features, hidden = torch.randn(TILES, DIM).to(dtype), torch.randn(TILES, HIDDEN).to(dtype)
    first, gates = torch.randn(HIDDEN, DIM).to(dtype), torch.randn(2 * ATTENTION, HIDDEN).to(dtype)
    scores = torch.randn(TILES, 2 * ATTENTION).to(dtype)

    def run() -> None:
        functional.linear(features, first), functional.linear(hidden, gates)  # forward
        scores.T @ hidden, scores @ gates, hidden.T @ features  # backward

    return run


# --- what is printed --------------------------------------------------------------------------------------------------


def loading(folder: Path, bags: list[Bag], repeats: int) -> None:
    contenders = {
        "ours, cohort file to float32": load(bags, "float32"),
        "ours, cohort file to bfloat16": load(bags, "bfloat16"),
        "HDF5 of CLAM and TRIDENT, float32": lambda: read_h5(folder / "bag.h5"),
        "HDF5 of CLAM and TRIDENT, float16": lambda: read_h5(folder / "bag16.h5"),
        "torch.load of .pt, float32": lambda: torch.load(folder / "bag.pt", weights_only=True),
    }
    costs = in_turns(contenders, repeats)
    show(f"loading a bag of {TILES:,} x {DIM}", costs)
    ours, theirs = costs["ours, cohort file to float32"].cpu, costs["HDF5 of CLAM and TRIDENT, float32"].cpu
    met = "met" if ours <= LOAD_MS else "NOT met"
    print(f"  float32 in {ours:.1f} ms CPU, target {LOAD_MS} ms: {met}; {theirs / ours:.1f}x the HDF5 layout")


def steps(folder: Path, bags: list[Bag], repeats: int) -> None:
    precision = trainer(bags, TILES, "auto").precision
    plain, half = "plain float32, bag in memory", "bfloat16, bag in memory"
    floor, half_floor = "  its matrix products alone, float32", "  its matrix products alone, bfloat16"
    full, drawn = f"as trained: all tiles, read, standardised, {precision}", "as trained by default: 512 drawn tiles"
    clam = "CLAM_SB's loop, from HDF5"
    contenders: dict[str, Callable[[], object]] = {
        plain: resident_step(torch.float32),
        floor: products(torch.float32),
        half: resident_step(torch.bfloat16),
        half_floor: products(torch.bfloat16),
        full: trained_step(bags, TILES, "auto"),
        drawn: trained_step(bags, 512, "auto"),
        clam: clam_loop(lambda: read_h5(folder / "bag.h5")),
        "CLAM_SB's loop, from .pt": clam_loop(lambda: torch.load(folder / "bag.pt", weights_only=True)),
    }
    costs = in_turns(contenders, repeats)
    for name in (full, drawn):
        costs[name] = Cost(costs[name].cpu / len(bags), costs[name].wall / len(bags))  # an epoch is a step for each bag
    show(f"a training step of gated ABMIL, {DIM} to {HIDDEN}, attention {ATTENTION}", costs)
    cpu = {name: cost.cpu for name, cost in costs.items()}
    known = ", ".join(sorted({"amx_bf16", "avx512_bf16"} & cpu_flags())) or "neither amx_bf16 nor avx512_bf16"
    chosen = half if precision == "bf16" else plain
    print(f"  this processor has {known}: precision auto is {precision}; bf16 is {cpu[plain] / cpu[half]:.1f}x float32")
    verdict("the step in the precision chosen against plain float32", cpu[plain] / cpu[chosen], STEP_RATIO)
    verdict("all tiles, read and trained on, against CLAM_SB's loop", cpu[clam] / cpu[full], CLAM_RATIO)
    print(f"  were all but the matrix products free, float32 would be {cpu[plain] / cpu[floor]:.1f}x, ", end="")
    print(f"bfloat16 {cpu[plain] / cpu[half_floor]:.1f}x, and float32 {cpu[clam] / cpu[floor]:.1f}x CLAM_SB's loop")
    print(f"  512 drawn tiles, less work: {cpu[plain] / cpu[drawn]:.0f}x plain float32 on all tiles, ", end="")
    print(f"{cpu[clam] / cpu[drawn]:.0f}x CLAM_SB's loop on all tiles")


def memory_mb(kind: str) -> float:
    """VmData, RssAnon (its own pages) or RssFile (pages of files, which the kernel takes back when it needs them)."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(f"{kind}:"))


def memory(folder: Path, gigabytes: float) -> None:
    """One pass over a large cohort for training and one over all its tiles, under a limit of private memory."""
    import resource

    count = max(2, round(gigabytes * 1e9 / (2 * TILES * DIM)))
    before, started = memory_mb("RssAnon"), time.perf_counter()
    write_cohort(folder / "large", bags_of(count))
    print(f"\nmemory, cohort of {count} bags, {count * 2 * TILES * DIM / 1e9:.1f} GB")
    print(f"  written in {time.perf_counter() - started:.0f} s, private memory {memory_mb('RssAnon') - before:+.0f} MB")
    limit = int((memory_mb("VmData") + HEADROOM_MB) * 2**20)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    bags = open_cohort(folder / "large")
    made = trainer(bags, 512, "auto")
    for what, run in (
        ("training epoch, 512 tiles of each bag", lambda: made.run_epoch(np.random.default_rng(0))),
        (
            "pass over all tiles",
            lambda: sum(1 for _ in batches(bags, range(count), BatchSpec(), np.random.default_rng(0))),
        ),
    ):
        before, started = memory_mb("RssAnon"), time.perf_counter()
        run()
        seconds, grown = time.perf_counter() - started, memory_mb("RssAnon") - before
        print(
            f"  {what}: {seconds:.1f} s, private memory {grown:+.0f} MB, of files {memory_mb('RssFile'):.0f} MB mapped"
        )
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    print(f"  both passed under a limit of {HEADROOM_MB} MB of further private memory: met")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cohort-gb", type=float, default=2, help="size of the cohort of the memory test; 0 for none")
    parser.add_argument("--folder", type=Path, help="where files are written for a while; a temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_cohort(folder / "cohort", bags_of(2))
        bags = open_cohort(folder / "cohort")
        write_theirs(folder, np.array(bags[0].features))
        loading(folder, bags, arguments.repeats)
        steps(folder, bags, arguments.repeats)
        if arguments.cohort_gb:
            memory(folder, arguments.cohort_gb)


if __name__ == "__main__":
    main()
