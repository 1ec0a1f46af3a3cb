"""wsi info: what is known of slides, without reading their pixels unless asked to."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from wsi.slide import Slide


def info(
    slides: Annotated[
        list[str],
        typer.Argument(help="Slide files, URLs such as s3://bucket/a.svs, or run folders", metavar="SLIDE"),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a slide", metavar="")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Read for two seconds and say how fast it went", metavar="")
    ] = False,
    channels: Annotated[
        str | None, typer.Option(help="Of a fluorescence or 16-bit file: DAPI=0000FF:100-4000", metavar="TEXT")
    ] = None,
) -> None:
    """Show format, scale, levels, codec and associated images of slides; of a run folder, its embeddings."""
    from wsi import open_slide
    from wsi.channels import Channels
    from wsi.errors import EngineError

    from .console import err, out

    chosen = Channels.parse(channels) if channels else None
    failed = 0
    for path in slides:
        try:
            if _is_run(path):
                _show_run(path, as_json)
                continue
            with open_slide(path, channels=chosen) as slide:
                out.print_json(data=_facts(slide, measure)) if as_json else _show(slide, measure)
        except EngineError as error:
            failed += 1
            err.print("[bold red]error[/] ", end="")
            err.print(str(error), markup=False)
    # one slide asked for and not readable is wrong input; some of many is work with failures
    raise typer.Exit(0 if not failed else 2 if len(slides) == failed else 1)


def _is_run(path: str) -> bool:
    """A slide that is a folder has neither."""
    return bool(path) and ((Path(path) / "run.json").is_file() or (Path(path) / "embeddings").is_dir())


def _show_run(path: str, as_json: bool) -> None:
    """The embeddings that a run holds, by the names that --features and --contract take."""
    from jobs.features import USUAL, contracts_in, features_table, stores_in
    from jobs.folder import RunFolder

    from .console import out, say

    folder = RunFolder(Path(path))
    contracts, slides = contracts_in(folder), stores_in(folder)
    if as_json:
        found = [{"name": name, "slides": slides[name], "contract": contracts[name]} for name in contracts]
        out.print_json(data={"path": path, "embeddings": found})
        return
    say(path, style="bold")
    say(features_table(contracts, USUAL, slides) if contracts else "  no embeddings: run `wsi embed`")


def _facts(slide: "Slide", measure: bool) -> dict:
    from wsi.source import shown
    from wsi.speed import measure_reading

    levels = [asdict(level) for level in slide.levels]
    speed = {"speed": asdict(measure_reading(slide))} if measure else {}
    return {"path": shown(slide.path), **asdict(slide.info), "levels": levels, **speed}


def _show(slide: "Slide", measure: bool) -> None:

    from wsi.source import name_of

    from .console import out, say

    facts, base = slide.info, slide.levels[0]
    say(name_of(slide.path), style="bold")
    mpp = f"{facts.mpp:.4g} µm/px (from {facts.mpp_source})" if facts.mpp else f"unknown: {facts.mpp_problem}"
    size = f"{base.width:,} × {base.height:,} px"
    if facts.mpp:
        size += f", {base.width * facts.mpp / 1000:.1f} × {base.height * facts.mpp / 1000:.1f} mm"
    rows = [
        ("vendor", " ".join(filter(None, [facts.vendor, facts.scanner]))),
        ("size", size),
        ("scale", mpp + (f", objective {facts.objective:g}x" if facts.objective else "")),
        (
            "codec",
            (facts.codec or "unknown")
            + (f", tiles of {facts.tile_px[0]} × {facts.tile_px[1]} px" if facts.tile_px else ""),
        ),
        ("associated", ", ".join(facts.associated) or "none"),
        ("ICC profile", f"{facts.icc_bytes:,} bytes" if facts.icc_bytes else "none"),
        ("reader", f"{facts.reader}: {facts.why}"),
    ]
    if facts.channels:
        rows.insert(-1, ("channels", facts.channels))
    if measure:
        rows.append(("speed", _speed(slide)))
    for name, value in rows:
        say(f"  {name:<12} {value}")
    out.print(_levels(slide))


def _speed(slide: "Slide") -> str:
    from wsi.speed import measure_reading

    speed = measure_reading(slide)
    if speed.megapixels < 1:
        return "too small to measure"
    lost = f"; {speed.unreadable} patches could not be read" if speed.unreadable else ""
    return (
        f"{speed.per_second:.0f} MP/s on one thread ({speed.per_cpu_second:.0f} per CPU-second; "
        f"{speed.megapixels:.3g} MP of level 0 in patches of {speed.patch_px} px){lost}"
    )


def _levels(slide: "Slide") -> "Table":
    from rich.table import Table

    names = ("level", "width", "height", "downsample", "µm/px", "")
    table = Table(*names, box=None, padding=(0, 2), header_style="dim")
    for column in table.columns[:-1]:
        column.justify = "right"
    stored = 0
    for number, level in enumerate(slide.levels):
        stored = number if level.stored else stored
        factor = round(level.downsample / slide.levels[stored].downsample)
        table.add_row(
            str(number),
            f"{level.width:,}",
            f"{level.height:,}",
            f"{level.downsample:.4g}",
            f"{level.mpp:.4g}" if level.mpp else "–",
            "stored" if level.stored else f"{'overview,' if level.overview else 'decoded at'} 1/{factor} from {stored}",
        )
    return table
