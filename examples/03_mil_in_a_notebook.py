"""Train, judge, save and use an attention-MIL model on bags that are nothing but arrays.

    python examples/03_mil_in_a_notebook.py

The bags are SYNTHETIC: random vectors, of which a tenth is shifted on the slides called "tumour". With your own
embeddings, replace `synthetic_bag`; with a run folder, use `load_bag(open_embeddings(path), label, patient_id)`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mil import Bag, TrainSpec, auroc, cross_validate, load_model, predict, save_model


def synthetic_bag(number: int, rng: np.random.Generator) -> tuple[Bag, np.ndarray]:
    """A slide of 100 tiles with 64-d embeddings, and which tiles are tumour, bool (100,)."""
    label = ("normal", "tumour")[number % 2]
    features = rng.normal(size=(100, 64)).astype(np.float32)
    tumour = np.zeros(100, bool)
    tumour[:10] = label == "tumour"
    features[tumour, :8] += 1.5
    xy = np.stack([np.arange(100) % 10, np.arange(100) // 10], axis=1) * 512  # tile corners, level-0 pixels
    return Bag(features, xy, 512, (f"slide-{number}",), label, patient_id=f"patient-{number // 2}-{label}"), tumour


def main() -> None:
    rng = np.random.default_rng(0)
    bags, truths = zip(*(synthetic_bag(number, rng) for number in range(40)), strict=True)

    model = cross_validate(bags, TrainSpec(head="abmil", hidden=64, folds=4, epochs=25, learning_rate=1e-3))
    found = model.figures["headline"]
    interval = found["reason"] or f"95 % interval {found['low']:.3f} to {found['high']:.3f}"
    print(f"slide AUROC out of fold: {found['value']:.3f} ({interval})")

    with TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "demo")
        model = load_model(Path(folder) / "demo")

    known = predict(model, bags[1])  # its patient was in training, so only one fold's model may speak
    print(f"{known.slide_id}: {known.predicted}, probabilities {known.probability.round(3)}, by {known.origin}")
    print(f"attention finds its tumour tiles with AUROC {auroc(truths[1], known.attention):.3f}")

    new = predict(model, synthetic_bag(1001, rng)[0])
    print(f"{new.slide_id}: {new.predicted}, probabilities {new.probability.round(3)}, by {new.origin}")


if __name__ == "__main__":
    main()
