"""Bundles: weights with their licence, provenance and checksums, carried to machines that reach no hub.

A bundle is a folder, or the same in a .tar:

    SHA256SUMS           of every other file; `sha256sum -c` reads it
    NAME/entry.json      all that the entry says, the commit that was got, the weights' file and sha256
    NAME/TERMS.txt       licence, source and paper in words
    NAME/README.md, …    licence, model card and notice of the authors, and a tokenizer, where they were at hand
    NAME/model.…         the weights

Importing puts NAME/ into the folder of imported weights, where `find_weights` looks before it asks a hub.
"""

import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from wsi.errors import BackboneError
from wsi.publish import appear, appear_file, clear_drafts, draft_of

from .backbone import Backbone
from .hub import beside_in, revision_of, snapshot_root
from .slide_encoders.encoder import SlideEncoder
from .weights import FACTS, Source, find_weights, imported, read_facts, weights_digest, weights_home

SUMS, TERMS = "SHA256SUMS", "TERMS.txt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_SUM = re.compile(r"([0-9a-f]{64})  (\S.*)")


@dataclass(frozen=True)
class _Item:
    """A file of a bundle: its place, NAME/FILE, and its content or where that is."""

    place: str
    content: Path | bytes

    @property
    def sha256(self) -> str:
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        return weights_digest(self.content)


def export_bundle(
    entries: Sequence[Source], target: Path, weights: Mapping[str, Path] | None = None, offline: bool = False
) -> list[dict[str, Any]]:
    """Write a bundle of the entries: a .tar where `target` is called so, else a folder. Returns each one's facts.

    weights  files to take instead of what `find_weights` finds, by the entry's name
    Weights that are not on this machine are fetched. Raises BackboneError, also for weights that do not fit the entry
    or are not its authors', and for a slide encoder that comes with code, which is several files; `target` then does
    not appear.
    """
    if target.exists():
        raise BackboneError(target, "it is there already", "give another name, or remove it")
    for entry in entries:
        if getattr(entry, "remote_code", False):
            problem = "it comes with code of its authors, in several files, and a bundle holds weights alone"
            raise BackboneError(entry.name, problem, "copy its folder of the hub's cache, and give that with --weights")
    facts: list[dict[str, Any]] = []
    items: list[_Item] = []
    for entry in entries:
        path = find_weights(entry, (weights or {}).get(entry.name), offline, own=True)
        _check(entry, path)
        facts.append(_facts(entry, path))
        items += _items(entry, path, facts[-1])
    sums = "".join(f"{item.sha256}  {item.place}\n" for item in items)
    items.append(_Item(SUMS, sums.encode()))
    if target.suffix == ".tar":
        with appear_file(target) as draft, tarfile.open(draft, "w") as archive:
            for item in items:
                _add(archive, item)
    else:
        with appear(target) as folder:
            for item in items:
                _write(folder / item.place, item.content)
    return facts


def import_bundle(bundle: Path) -> list[dict[str, Any]]:
    """Put a bundle's weights where `find_weights` looks for them, replacing those of the same name.

    Nothing is put there before every checksum has been found right. Returns each one's facts.
    Raises BackboneError for a bundle that is damaged, incomplete, or holds what no bundle holds.
    """
    home = weights_home()
    home.mkdir(parents=True, exist_ok=True)
    clear_drafts(home)
    stage = draft_of(home / "bundle", uuid4().hex[:6])
    stage.mkdir()
    try:
        _unpack(bundle, stage)
        facts = _verified(bundle, stage)
        for fact in facts:
            with appear(home / fact["name"]) as folder:
                for path in sorted((stage / fact["name"]).iterdir()):
                    path.rename(folder / path.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return facts


def _check(entry: Source, path: Path) -> None:
    """Raise BackboneError unless these are the weights that a bundle says that they are, as far as can be seen."""
    from .loader import check_weights
    from .slide_encoders.build import check_encoder

    if entry.sha256 is not None and weights_digest(path) != entry.sha256:
        problem = f"it is not the file of {entry.name}'s authors, and a bundle carries those: {entry.sha256}"
        remedy = "copy your own weights as they are; --weights FILE with --own-weights embeds with them"
        raise BackboneError(path, problem, remedy)
    if isinstance(entry, Backbone):
        check_weights(entry, path)
    elif isinstance(entry, SlideEncoder):
        check_encoder(entry, path)


def _facts(entry: Source, path: Path) -> dict[str, Any]:
    told: dict[str, Any] = asdict(entry) if is_dataclass(entry) and not isinstance(entry, type) else {}
    carried = read_facts(path.parent) if imported(entry) == path else {}
    return {
        **told,
        "weights_file": path.name if _NAME.fullmatch(path.name) else f"weights{path.suffix}",
        "weights_sha256": weights_digest(path),
        "commit": revision_of(path) or carried.get("commit"),
        "made_by": f"slidestream {metadata.version('slidestream')}",
    }


def _items(entry: Source, path: Path, facts: Mapping[str, Any]) -> Iterator[_Item]:
    yield _Item(f"{entry.name}/{FACTS}", (json.dumps(facts, indent=2, default=str, ensure_ascii=False) + "\n").encode())
    yield _Item(f"{entry.name}/{TERMS}", _terms(entry, facts).encode())
    for file in _beside(entry, path):
        if _NAME.fullmatch(file.name):
            yield _Item(f"{entry.name}/{file.name}", file)
    yield _Item(f"{entry.name}/{facts['weights_file']}", path)


def _terms(entry: Source, facts: Mapping[str, Any]) -> str:
    kind, _, rest = entry.weights.partition(":")
    place = f"https://huggingface.co/{rest}" if kind == "hf-hub" else f"the Python package {rest}"
    lines = [
        f"Weights of {entry.name}",
        "",
        f"Licence: {entry.licence} (as the entry of this name states it; the authors' own text decides)",
        f"Source:  {rest if kind == 'file' else place}",
        *([f"Commit:  {facts['commit']}"] if facts.get("commit") else []),
        f"Paper:   {entry.paper}",
        f"File:    {facts['weights_file']}, sha256 {facts['weights_sha256']}",
    ]
    if entry.gated:
        lines += ["", "Its authors ask everyone who uses the weights to accept their terms first, at the source above."]
    return "\n".join(lines) + "\n"


def _beside(entry: Source, path: Path) -> list[Path]:
    """Files of the authors that go along with the weights, where they are at hand."""
    kind, _, rest = entry.weights.partition(":")
    if imported(entry) == path:
        return beside_in(path.parent)
    if kind == "package":
        files = metadata.files(rest.replace("_", "-")) or ()
        return [Path(str(file.locate())) for file in files if file.name.upper().startswith("LICEN")]
    root = snapshot_root(path)
    return beside_in(root) if root is not None else []


def _write(path: Path, content: Path | bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        shutil.copyfile(content, path)


def _add(archive: tarfile.TarFile, item: _Item) -> None:
    """Nothing of this machine or day goes along: the same weights make the same archive."""
    member = tarfile.TarInfo(item.place)
    if isinstance(item.content, bytes):
        member.size = len(item.content)
        archive.addfile(member, BytesIO(item.content))
        return
    member.size = item.content.stat().st_size
    with item.content.open("rb") as stream:
        archive.addfile(member, stream)


def _unpack(bundle: Path, stage: Path) -> None:
    if bundle.is_dir():
        for path in bundle.rglob("*"):
            _check_place(bundle, path.relative_to(bundle).as_posix(), path.is_symlink())
        shutil.copytree(bundle, stage, dirs_exist_ok=True)
        return
    try:
        with tarfile.open(bundle, "r:") as archive:
            for member in archive:
                _check_place(bundle, member.name, not (member.isfile() or member.isdir()))
            archive.extractall(stage, filter="data")
    except FileNotFoundError as error:
        raise BackboneError(bundle, "there is no such bundle", "give what `wsi backbones export` wrote") from error
    except tarfile.TarError as error:
        raise _unsound(bundle, f"it is no sound .tar ({error})") from error


def _check_place(bundle: Path, place: str, special: bool) -> None:
    """A bundle is plain files under NAME/ and its list of sums: no links, nothing deeper, nothing outside."""
    parts = PurePosixPath(place).parts
    if special or len(parts) > 2 or not all(_NAME.fullmatch(part) for part in parts):
        raise _unsound(bundle, f"it holds {place!r}, which has no place in a bundle")


def _verified(bundle: Path, stage: Path) -> list[dict[str, Any]]:
    """Facts of all that lies unpacked in `stage`, if it is whole and every checksum is right."""
    if not (stage / SUMS).is_file():
        raise _unsound(bundle, f"it has no {SUMS}")
    lines = [_SUM.fullmatch(line) for line in (stage / SUMS).read_text(encoding="utf-8").splitlines()]
    sums = {found[2]: found[1] for found in lines if found is not None}
    files = {path.relative_to(stage).as_posix(): path for path in stage.rglob("*") if path.is_file()}
    del files[SUMS]
    if set(sums) != set(files) or not files:
        odd = sorted(set(sums) ^ set(files)) or ["no weights"]
        raise _unsound(bundle, f"its files are not those of its {SUMS}: {', '.join(odd[:3])}")
    for place, path in files.items():
        if weights_digest(path) != sums[place]:
            raise _unsound(bundle, f"{place} is damaged: its sha256 is {weights_digest(path)}, not {sums[place]}")
    return [_verified_facts(bundle, folder, sums) for folder in sorted(stage.iterdir()) if folder.is_dir()]


def _verified_facts(bundle: Path, folder: Path, sums: Mapping[str, str]) -> dict[str, Any]:
    facts = read_facts(folder)
    if facts["name"] != folder.name or sums.get(f"{folder.name}/{facts['weights_file']}") != facts["weights_sha256"]:
        raise _unsound(bundle, f"{folder.name}/{FACTS} is not of the weights beside it")
    return facts


def _unsound(bundle: Path, problem: str) -> BackboneError:
    return BackboneError(bundle, problem, "copy it again, or export it again")
