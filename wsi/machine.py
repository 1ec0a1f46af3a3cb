"""Which machine and process this is, so that others can tell whether it still lives."""

import hashlib
import os
import socket
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def machine_id() -> str:
    """Eight hex digits of this boot of this machine, as its processes see it.

    Host names are shared by containers, and process numbers mean something only within one boot and one space of
    process numbers: who has the same digits may ask whether a process of that number lives.
    """
    parts = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        try:
            parts.append(read().strip())
        except OSError:  # not Linux
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def process_start(pid: int) -> str:
    """When the process began, in the system's ticks since boot: numbers of processes are used again. "" if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def is_alive(pid: int, start: str = "") -> bool:
    """Whether a process of this machine lives; start: as `process_start` gave it, "" for any of that number."""
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a process that was killed, and whose end nobody has asked for, still has its number
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return fields[0] not in ("Z", "X") and (not start or fields[19] == start)
    except (OSError, IndexError):
        return True
