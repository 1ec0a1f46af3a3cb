"""Classes by description: prompts → class embeddings → scores of tiles → scores of a slide. No training, no torch.

The rule is MI-Zero's (Lu et al., CVPR 2023, arXiv 2306.07831) as CONCH uses it: a class is the mean of the embeddings
of all its names in all templates; a slide's cosine with a class is the mean over the `top_k` tiles nearest to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from wsi.errors import SpecError

TEMPLATES = (
    "{}.",
    "histology of {}.",
    "a microscope picture of {}.",
    "tissue under the microscope: {}.",
    "a region of a slide that shows {}.",
    "{}, stained with hematoxylin and eosin.",
    "an H&E section with {}.",
    "this part of the specimen is {}.",
)
TOP_K = 50


class Tower(Protocol):
    """What of a text tower is needed here."""

    def embed(self, prompts: Sequence[str]) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class Prompts:
    """The classes to tell apart, and how they are described.

    classes    (class, its names): a class has one or more names
    templates  sentences with {} where a name goes
    """

    classes: tuple[tuple[str, tuple[str, ...]], ...]
    templates: tuple[str, ...] = TEMPLATES

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise SpecError("prompts.classes", f"{len(self.classes)} classes", "give two or more: one says nothing")
        for name, words in self.classes:
            if not name.strip() or not words or not all(word.strip() for word in words):
                raise SpecError("prompts.classes", f"{name!r} has no name to look for", "give each class its names")
        if not self.templates or not all(text.count("{}") == 1 for text in self.templates):
            raise SpecError(
                "prompts.templates", "each needs one {} where a name goes", 'such as "an H&E section of {}."'
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.classes)


def read_prompts(path: Path) -> Prompts:
    """Prompts of a YAML file: `classes`, class → list of names, and `templates`, where others than ours are wanted.

    Raises SpecError that says what is wrong with it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(path, f"it cannot be read ({error})", "give a YAML file with prompts") from error
    except yaml.YAMLError as error:
        raise SpecError(path, "it is not valid YAML", "see docs/zero-shot.md") from error
    classes = content.get("classes") if isinstance(content, Mapping) else None
    if not isinstance(classes, Mapping) or not set(content) <= {"classes", "templates"}:
        raise SpecError(path, "it needs `classes` (class: [names]), and may have `templates`", "see docs/zero-shot.md")
    templates = content.get("templates") or list(TEMPLATES)
    if not all(isinstance(name, str) for name in classes):
        raise SpecError(path, "a class has a name that YAML reads as a number or truth value", "put it in quotes")
    lists = [*classes.values(), templates]
    if not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in lists):
        raise SpecError(path, "classes and templates are lists of text", "see docs/zero-shot.md")
    return Prompts(tuple((name, tuple(words)) for name, words in classes.items()), tuple(templates))


def class_embeddings(tower: Tower, prompts: Prompts) -> NDArray[np.float32]:
    """float32 (c, d): for each class the mean over names and templates, of unit length."""
    means = []
    for _, words in prompts.classes:
        texts = [template.replace("{}", word) for word in words for template in prompts.templates]
        means.append(tower.embed(texts).mean(axis=0))
    return unit(np.stack(means))


def tile_cosines(embeddings: NDArray[np.floating], classes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of each tile (n, d) of the variant `projected` with each class (c, d) of unit length: float32 (n, c)."""
    return unit(embeddings.astype(np.float32)) @ classes.T


def slide_cosines(cosines: NDArray[np.float32], top_k: int) -> NDArray[np.float32]:
    """float32 (c,): for each class the mean over the `top_k` tiles nearest to it, over all where there are fewer."""
    nearest = np.sort(cosines, axis=0)[::-1][:top_k]
    return nearest.mean(axis=0, dtype=np.float64).astype(np.float32)


def softmax(cosines: NDArray[np.float32], logit_scale: float) -> NDArray[np.float32]:
    """Cosines (…, c) → scores that sum to 1 over the classes. They are not probabilities: nothing is calibrated."""
    logits = cosines * np.float32(logit_scale)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of unit length; a row of zeros stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
