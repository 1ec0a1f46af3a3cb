"""wsi info: what is known of slides, without reading their pixels."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wsi.slide import Slide


def info(
    slides: Annotated[list[str], typer.Argument(help="Slide files, or URLs such as s3://bucket/a.svs")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a slide")] = False,
) -> None:
    """Show format, scale, levels, codec and associated images of slides."""
    from wsi import open_slide
    from wsi.errors import EngineError
    from wsi.source import place_of

    from .console import err, out

    failed = 0
    for path in slides:
        try:
            with open_slide(place_of(path)) as slide:
                out.print_json(data=_facts(slide)) if as_json else _show(slide)
        except EngineError as error:
            failed += 1
            err.print("[bold red]error[/] ", end="")
            err.print(str(error), markup=False)
    # one slide asked for and not readable is wrong input; some of many is work with failures
    raise typer.Exit(0 if not failed else 2 if len(slides) == failed else 1)


def _facts(slide: "Slide") -> dict:
    from wsi.source import shown

    levels = [asdict(level) for level in slide.levels]
    return {"path": shown(slide.path), **asdict(slide.info), "levels": levels}


def _show(slide: "Slide") -> None:
    from rich.table import Table

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
    for name, value in rows:
        say(f"  {name:<12} {value}")
    table = Table("level", "width", "height", "downsample", "µm/px", box=None, padding=(0, 2), header_style="dim")
    for column in table.columns:
        column.justify = "right"
    for number, level in enumerate(slide.levels):
        scale = f"{level.mpp:.4g}" if level.mpp else "–"
        table.add_row(str(number), f"{level.width:,}", f"{level.height:,}", f"{level.downsample:.4g}", scale)
    out.print(table)
