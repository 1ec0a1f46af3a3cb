"""Several hosts on this machine: network namespaces on one bridge, each with an address of its own. Takes root."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class NoHosts(Exception):
    """Network namespaces cannot be made here; the text says why."""


@dataclass(frozen=True)
class Host:
    """name of its namespace, its address and the end of its cable that is plugged into the bridge."""

    name: str
    address: str
    cable: str

    def command(self, *words: object) -> list[str]:
        """What runs a command on this host."""
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def unplug(self) -> None:
        """Nothing reaches it any more, and nobody tells anybody: as when a machine loses power."""
        _ip("link", "set", self.cable, "down")

    def plug(self) -> None:
        _ip("link", "set", self.cable, "up")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoHosts(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """`count` hosts that reach each other, and nothing else; gone with the block, with all that runs there unplugged.

    Raises NoHosts with the reason where it cannot be.
    """
    if shutil.which("ip") is None or os.geteuid() != 0:
        raise NoHosts("it takes root and iproute2")
    mark = f"w{os.getpid() % 100_000}"
    bridge = f"{mark}br"
    hosts = [Host(f"{mark}n{number}", f"10.213.7.{number + 1}", f"{mark}c{number}") for number in range(count)]
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for host in hosts:
            _ip("netns", "add", host.name)
            _ip("link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", host.cable, "master", bridge, "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
        yield hosts
    finally:
        made = [("netns", host.name) for host in hosts] + [("link", host.cable) for host in hosts] + [("link", bridge)]
        for kind, name in made:
            subprocess.run(["ip", kind, "del", name], capture_output=True, check=False)
