"""Stain normalisation of a batch of 224 px patches, CPU time on one thread: against torchstain's loop over pictures,
and beside a ViT-S/16 forward of the same batch.

python benchmarks/bench_stain.py
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from embedding.spec import StainSpec
from embedding.stain import fit_stain

PATCHES, SIDE, REPEATS = 16, 224, 5


def patches() -> torch.Tensor:
    """Grey levels float (16, 3, 224, 224) of two dyes with a fifth of glass."""
    random = np.random.default_rng(0)
    amounts = random.gamma(2, 0.4, (PATCHES, SIDE, SIDE, 2)) * (random.random((PATCHES, SIDE, SIDE, 1)) > 0.2)
    density = amounts @ [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]]
    return torch.from_numpy((240 * np.exp(-density)).round()).permute(0, 3, 1, 2).float().contiguous()


def best_of(repeats: int, run: Callable[[], object]) -> float:
    """Least CPU seconds of one call, after one that is not counted."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return min(seconds)


def torchstain_loop(method: str, pixels: torch.Tensor) -> Callable[[], None] | None:
    """torchstain's normaliser, a picture at a time, as its documentation shows; None where it is not there."""
    try:
        import torchstain
    except ImportError:
        return None
    if method not in ("macenko", "reinhard"):
        return None
    normaliser = getattr(torchstain.normalizers, f"{method.title()}Normalizer")("torch")
    normaliser.fit(pixels[0])

    def run() -> None:
        for picture in pixels:
            normaliser.normalize(picture, stains=False) if method == "macenko" else normaliser.normalize(picture)

    return run


def main() -> None:
    import timm

    torch.set_num_threads(1)
    pixels, places = patches(), torch.arange(PATCHES)
    tissue = pixels.permute(0, 2, 3, 1).reshape(-1, 3).byte().numpy()
    network = timm.create_model("vit_small_patch16_224", num_classes=0).eval()
    with torch.inference_mode():
        forwards = {"fp32": best_of(REPEATS, lambda: network(pixels / 255))}
        half = network.to(torch.bfloat16)
        forwards["bf16"] = best_of(REPEATS, lambda: half((pixels / 255).bfloat16()))
        for precision, seconds in forwards.items():
            print(f"ViT-S/16 {precision}: {1e3 * seconds / PATCHES:.1f} ms a patch")
        for spec in (*map(StainSpec, ("macenko", "vahadane", "reinhard")), StainSpec(jitter=0.05)):
            transform = fit_stain(spec, tissue)
            ours = best_of(REPEATS, lambda transform=transform: transform(pixels, places))
            loop = torchstain_loop(spec.method, pixels)
            against = "" if loop is None else f", {best_of(REPEATS, loop) / ours:.1f}x torchstain's loop"
            fit = (
                ""
                if spec.method == "none"
                else f", fit {best_of(1, lambda s=spec: fit_stain(s, tissue)):.2f} s a slide"
            )
            shares = " and ".join(f"{ours / seconds:.1%} of {name}" for name, seconds in forwards.items())
            name = spec.method if spec.method != "none" else "jitter alone"
            print(f"{name}: {1e3 * ours / PATCHES:.2f} ms a patch, {shares}{against}{fit}")


if __name__ == "__main__":
    main()
