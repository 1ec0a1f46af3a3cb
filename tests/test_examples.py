"""Every example runs as its first lines say."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ARGUMENTS = {"01_synthetic_slide.py": ["{out}"], "02_slide_in_a_notebook.py": ["{slide}", "{out}"]}


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs(name, real_slide, tmp_path):
    words = [word.format(out=tmp_path / "out", slide=real_slide) for word in ARGUMENTS.get(name, [])]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if words:
        assert any((tmp_path / "out").iterdir())
