"""The command `wsi`. Commands parse, call jobs and print; what they call is imported when they run."""

import os
import sys
import threading
from typing import Annotated

import typer

from . import (
    backbones,
    convert,
    demo,
    doctor,
    encode,
    evaluate,
    finetune,
    info,
    review,
    run,
    stages,
    status,
    train,
    view,
    zero_shot,
)

app = typer.Typer(
    name="wsi",
    help="Whole-slide images to a class, a heatmap and a report. For research; not for diagnosis.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # its tracebacks print local variables, which may hold patients' data
    add_completion=True,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"slidestream {version('slidestream')}")
        raise typer.Exit


@app.callback()
def _main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more", metavar="")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version", metavar="")
    ] = False,
) -> None:
    from .console import start_logging

    start_logging(verbose)


for command, panel in (
    (run.run, "The whole road"),
    (status.status, "The whole road"),
    (view.view, "The whole road"),
    (demo.demo, "The whole road"),
    (info.info, "One step"),
    (stages.tile, "One step"),
    (stages.embed, "One step"),
    (encode.encode, "One step"),
    (train.train, "One step"),
    (finetune.finetune, "One step"),
    (stages.predict, "One step"),
    (stages.heatmap, "One step"),
    (evaluate.evaluate, "One step"),
    (zero_shot.zero_shot, "One step"),
    (convert.convert, "Other tools"),
    (doctor.doctor, "This machine"),
):
    app.command(rich_help_panel=panel)(command)
app.add_typer(review.app, rich_help_panel="The whole road")
app.add_typer(backbones.app, rich_help_panel="This machine")


def main() -> None:
    """Entry point: an error that the engine raised on purpose is a line and exit code 2."""
    from jobs.interrupt import exit_code, listen, was_terminated
    from wsi.errors import EngineError

    if threading.current_thread() is threading.main_thread():
        listen()
    # GNU OpenMP's idle threads spin by default, and where cores are shared with other work each small step of a
    # training then waits for a thread that is not running (measured: 108 s, not 5.6 s). Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=True)
    except EngineError as error:
        from .console import err

        err.print("[bold red]error[/] ", end="")
        err.print(str(error), markup=False)
        sys.exit(2)
    except OSError as error:
        from jobs.attempt import FULL_DISK, explain_os_error

        if error.errno not in FULL_DISK:
            raise
        from .console import err

        problem, remedy, _ = explain_os_error(error)  # of what is written beside the slides' results
        err.print(f"{problem}; {remedy}", markup=False)
        sys.exit(1)
    except KeyboardInterrupt as error:
        sys.exit(exit_code(error))
    except SystemExit as end:
        if end.code == 130 and was_terminated():  # typer says so of whatever interrupts a command
            sys.exit(143)
        raise
