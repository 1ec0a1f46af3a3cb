"""wsi doctor: can the engine run on this machine?"""

import typer


def doctor() -> None:
    """Look at this machine: libraries, torch and torchvision, GPU, weights. Exit code 1 if something is broken."""
    from jobs.doctor import BAD, GOOD, examine

    from .console import out

    broken = False
    for finding in examine():
        colour = {GOOD: "green", BAD: "bold red"}.get(finding.state, "yellow")
        out.print(f"[{colour}]{finding.state:<5}[/]{finding.name:<18}", end="")
        out.print(finding.seen, markup=False)
        if finding.state != GOOD and finding.remedy:
            out.print(f"{'':<23}{finding.remedy}", markup=False)
        broken = broken or finding.state == BAD
    raise typer.Exit(1 if broken else 0)
