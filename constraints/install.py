"""Install slidestream into the environment whose Python runs this, and never several GB of CUDA by accident.

    python constraints/install.py [EXTRAS]        EXTRAS such as dev

Which build of torch pip would take depends on the machine: on Linux the package index serves the CUDA build. This asks
pip first (only metadata is fetched); if it is that one, uv installs PyTorch's CPU build instead. With a GPU, say so:
TORCH=cuda in the environment takes what pip offers.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONSTRAINTS = ["-c", str(HERE / "cpu.txt")]


def needs_cuda(report: dict) -> bool:
    """Whether pip's installation report names a torch whose requirements, extras aside, are CUDA libraries."""
    wanted = [line for item in report["install"] for line in item["metadata"].get("requires_dist", [])]
    return any(line.startswith(("nvidia-", "cuda-")) and "extra ==" not in line for line in wanted)


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def offered_torch() -> dict:
    """pip's report on the torch that the constraints lead to here; nothing is downloaded but its metadata."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        pip("install", "-q", "--dry-run", "--no-deps", "--report", str(path), *CONSTRAINTS, "torch")
        return json.loads(path.read_text())


def main() -> None:
    extras = f"[{sys.argv[1]}]" if len(sys.argv) > 1 else ""
    package = ["-e", f"{HERE.parent}{extras}"]
    pip("install", "-q", "--upgrade", "pip")  # an old resolver needs minutes for what a new one does in seconds
    if os.environ.get("TORCH") == "cuda":
        pip("install", *package)
    elif needs_cuda(offered_torch()):
        print("pip offers the CUDA build of torch: taking the CPU build with uv (TORCH=cuda keeps pip's).", flush=True)
        pip("install", "-q", "uv")
        uv = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, "--torch-backend=cpu"]
        subprocess.run([*uv, *CONSTRAINTS, *package], check=True)
    else:
        pip("install", *CONSTRAINTS, *package)


if __name__ == "__main__":
    main()
