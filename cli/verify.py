"""wsi run --verify: look at every result before going on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.pipeline import Job

MOST_FAULTS = 20  # listed on the terminal


def verify(job: "Job", inputs: bool) -> None:
    """Read all results of the job's slides, and put aside what is not as it was published, for the run to make anew.

    inputs  also read the slides whole, and put aside what was made of those that were changed
    """
    from datetime import UTC, datetime

    from jobs.follow import file_clock, session_age
    from jobs.verify import quarantine, verify_inputs, verify_run

    from .console import bar, out, say

    sessions, time = job.folder.root / "sessions", datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    clock = file_clock(sessions) or 0.0
    faults = []
    for name, check in (("verify", verify_run), *((("inputs", verify_inputs),) if inputs else ())):
        with bar(name, len(job.records)) as show:
            found = check(job.records, job.spec, job.folder, lambda done, total, show=show: show(done, ""))
        for fault in found:
            quarantine(fault, job.folder, time, lambda session: session_age(sessions / f"{session}.json", clock) <= 1)
        faults += found
    for fault in faults[:MOST_FAULTS]:
        out.print("  [bold red]damaged[/] ", end="")
        say(str(fault))
    if len(faults) > MOST_FAULTS:
        say(f"  … and {len(faults) - MOST_FAULTS} more")
    if faults:
        say(f"{len(faults)} damaged: put aside in {job.folder.root / 'quarantine' / time}, and made anew now")
    else:
        say(f"Every result of {len(job.records)} slides is as it was published.")
