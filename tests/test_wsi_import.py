"""`import wsi` is light, and makes torchvision importable where its compiled part is not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_wsi_loads_no_heavy_library():
    heavy = "{'torch', 'timm', 'torchvision', 'tifffile', 'openslide', 'cv2', 'zarr', 'PIL', 'simplejpeg', 'dask'}"
    assert _python(f"import sys, wsi; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_timm_imports_after_wsi():
    assert _python("import wsi, timm; print(len(timm.list_models('vit_small_patch16_224*')) > 0)") == "True"


def test_the_hook_stands_once_and_only_for_one_module():
    code = """
import sys, wsi
from wsi._compat import _TorchvisionFinder, install_torchvision_hook
install_torchvision_hook()
finders = [finder for finder in sys.meta_path if isinstance(finder, _TorchvisionFinder)]
print(len(finders), finders[0].find_spec("torchvision", None), finders[0].find_spec("json", None))
"""
    assert _python(code) == "1 None None"


# A stand-in for a broken torchvision: its registration module fails unless the operators are declared by then.
_EXTENSION = "def _has_ops():\n    return {sound}\n"
_REGISTRATIONS = (
    "import torch\ntorch._C._get_schema('torchvision::nms', '')\ntorch._C._get_schema('torchvision::qnms', '')\n"
)


@pytest.mark.parametrize(
    ("sound", "hooked", "imports"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_the_hook_declares_operators_only_for_a_torchvision_without_them(tmp_path, sound, hooked, imports):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from . import extension, _meta_registrations\n")
    (package / "extension.py").write_text(_EXTENSION.format(sound=sound))
    (package / "_meta_registrations.py").write_text(_REGISTRATIONS)
    hook = "import wsi" if hooked else "pass"
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n{hook}\nimport torchvision"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode == 0) == imports, done.stderr
    assert imports or "torchvision::nms" in done.stderr
