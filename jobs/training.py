"""Train a model on the embedded slides of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsi.errors import ManifestError, StoreError

from .config import RunSpec
from .folder import RunFolder
from .manifest import SlideRecord
from .receipts import FAILED, latest, read_receipts
from .stages import AS_JPEG, contract_of, has_fitting, open_unchanged

if TYPE_CHECKING:
    from mil.bag import Bag
    from mil.model import TrainedModel

Progress = Callable[[int, int, float, float | None], None]


def left_out(records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder) -> list[str]:
    """Ids of labelled slides that failed to tile or embed: their failure is on record, so training goes on without.

    A failure with another backbone does not count against embeddings that are there.
    """
    where = embeddings_folder(spec)
    tile, embed = (latest(read_receipts(folder.receipts(stage))) for stage in ("tile", "embed"))

    def failed(slide_id: str) -> bool:
        if slide_id in tile and tile[slide_id].status == FAILED:
            return True
        if slide_id not in embed or embed[slide_id].status != FAILED:
            return False
        return not has_fitting(folder.embeddings(where, slide_id), folder, slide_id)

    return [record.slide_id for record in records if record.label is not None and failed(record.slide_id)]


def embeddings_folder(spec: RunSpec) -> str:
    """Name of the folder of embeddings that the settings name, or ask for."""
    from embedding.contract import contract_name

    return spec.features or contract_name(
        contract_of(spec.embed, spec.tile, AS_JPEG if spec.patches == "jpeg" else None)
    )


def train_model(
    records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder, name: str, progress: Progress | None = None
) -> "TrainedModel":
    """Cross-validate a head over all labelled slides, by patient, and publish it as models/<name>.

    Slides that failed earlier are left out (see `left_out`). Raises ManifestError without labels, StoreError when any
    other labelled slide has no embeddings of the asked contract.
    """
    from mil.model import named, save_model
    from mil.train import cross_validate

    bags = load_bags(records, spec, folder)
    model = named(cross_validate(bags, spec.train, progress=progress), name)
    save_model(model, folder.model(name))
    return model


def load_bags(records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder) -> "list[Bag]":
    """Bags of all slides to train on, in the manifest's order."""
    from mil.bag import load_bag

    where = embeddings_folder(spec)
    return [
        load_bag(
            open_unchanged(folder.embeddings(where, record.slide_id), folder, record),
            record.label,
            record.patient_id,
            record.case_id,
        )
        for record in to_train_on(records, spec, folder)
    ]


def to_train_on(records: Sequence[SlideRecord], spec: RunSpec, folder: RunFolder) -> list[SlideRecord]:
    """Labelled slides that did not fail earlier, each of which has its embeddings (else StoreError)."""
    if all(record.label is None for record in records):
        raise ManifestError("label", "no slide has one", "add a `label` column to the manifest")
    failed, where = set(left_out(records, spec, folder)), embeddings_folder(spec)
    labelled = [record for record in records if record.label is not None and record.slide_id not in failed]
    if not labelled:
        raise StoreError(folder.root, "every labelled slide failed to tile or embed", "see its receipts")
    missing = [record.slide_id for record in labelled if not folder.embeddings(where, record.slide_id).exists()]
    if missing:
        named = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        others = ", ".join(sorted(entry.name for entry in folder.root.glob("embeddings/*") if entry.name != where))
        hint = f"; there are those of {others}, to be named with --features" if others else ""
        raise StoreError(
            Path("embeddings") / where,
            f"{len(missing)} of {len(labelled)} labelled slides have no embeddings there ({named})",
            "run `wsi embed` with the same settings, or leave those slides out of the manifest" + hint,
        )
    return labelled
