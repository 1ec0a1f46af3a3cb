"""Which slides a session works for, by name: so that a run can be shown to lack none of them."""

from collections.abc import Iterable
from pathlib import Path

from wsi.publish import appear_file, fingerprint


def keep_list(root: Path, slide_ids: Iterable[str]) -> str:
    """Write the ids into the run folder at `root`, unless such a list is there; returns its name.

    Raises OSError where nothing can be written.
    """
    ids = sorted(slide_ids)
    name = fingerprint(ids)
    path = _path(root, name)
    if not path.exists():
        with appear_file(path) as draft:
            draft.write_text("".join(f"{slide_id}\n" for slide_id in ids), encoding="utf-8")
    return name


def read_list(root: Path, name: str) -> frozenset[str] | None:
    """The ids of a list, None where there is none of that name, or not all of it."""
    try:
        ids = _path(root, name).read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError):
        return None
    return frozenset(ids) if fingerprint(ids) == name else None


def _path(root: Path, name: str) -> Path:
    return root / "lists" / f"{name}.txt"
