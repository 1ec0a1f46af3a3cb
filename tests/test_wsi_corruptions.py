"""Over a thousand damaged files: none crashes, hangs or fills the memory, and no wrong pixel passes for right where the
file shows that it is wrong."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.corruptions import Case, corpus
from tests.corruptions_files import crop, strangers
from tests.corruptions_judge import MIXED, REFUSED, SAME, WRONG, Ours, Verdict, in_child, judge, whole
from tests.slides import SvsOptions, tissue_like, write_svs
from wsi import Region, SlideError, open_slide
from wsi.formats.openslide import OpenSlideSlide

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each corpus is read in a forked process")

SILENCE_S = 60  # for one file, on a busy machine; a hang is for ever
MEMORY = 3 << 30  # of address space, beyond what the process has


def verdicts(cases: Sequence[Case], truth: list[NDArray[np.uint8]] | None, folder: Path) -> list[tuple[Case, Verdict]]:
    """What becomes of each file, all read in one child process."""

    def read_all(say: Callable[[str], None]) -> None:
        for number, case in enumerate(cases):
            path = folder / f"{number}.svs"
            case.make(path)
            say(json.dumps(asdict(judge(Ours, path, truth))) + "\n")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    ended = in_child(read_all, SILENCE_S, used + MEMORY)
    lines = ended.said.splitlines()
    if ended.code != 0:
        at = cases[len(lines)]
        pytest.fail(f"{at.family}/{at.name}: " + ("it hangs" if ended.code is None else f"exit code {ended.code}"))
    return [(case, Verdict(**json.loads(line))) for case, line in zip(cases, lines, strict=True)]


def sources(name: str, request: pytest.FixtureRequest, folder: Path) -> Path:
    if name == "jpeg":
        return crop(request.getfixturevalue("real_slide"), folder / "base.svs", 4)
    if name == "jpeg2000":
        slides = request.getfixturevalue("data_dir") / "slides"
        return crop(slides / "TCGA-CR-7395-01A-01-TS1.svs", folder / "base.svs", 2, 6)
    return write_svs(folder / "base.svs", tissue_like(500, 400), SvsOptions(128))


@pytest.mark.parametrize("name", ["jpeg", "jpeg2000", "pyramid"])
def test_no_damage_that_the_file_shows_passes_in_silence(name, request, tmp_path):
    base = sources(name, request, tmp_path)
    cases = corpus(base)
    assert len(cases) > 300
    found = verdicts(cases, whole(Ours(base)), tmp_path)
    silent = [f"{case.family}/{case.name}" for case, v in found if case.knowable and v.kind in (WRONG, MIXED)]
    assert silent == []
    unclean = [f"{case.family}/{case.name}: {v.words}" for case, v in found if not v.clean]
    assert unclean == []
    refused = [f"{case.family}/{case.name}: {v.words}" for case, v in found if case.sound and v.kind != SAME]
    assert refused == []
    false = [case.name for case, v in found if case.family == "scale" and v.mpp is not None]
    assert false == ["mpp_0,499"]  # a decimal comma
    assert {v.mpp for case, v in found if case.name == "mpp_0,499"} == {0.499}
    # damage that nothing in the file shows is all that passes: the corpus does contain it
    assert {case.family for case, v in found if v.kind in (WRONG, MIXED)} >= {"bit flip"}


def test_what_is_no_slide_is_refused_with_a_reason_and_a_remedy(tmp_path):
    found = verdicts(strangers(tmp_path), None, tmp_path)  # a link among them leads to the folder of them all
    assert [f"{case.family}/{case.name}: {v}" for case, v in found if v.kind != REFUSED or not v.clean] == []
    words = {case.name: v.words for case, v in found}
    assert "Git LFS" in words["lfs_pointer"]
    assert "HTML" in words["html"]
    assert "not a regular file" in words["fifo"]
    assert "implausible size" in words["tile_40000_7"]
    assert "the limit is 16,777,216 px each" in words["tile_20000_8"]


def test_a_file_that_this_user_may_not_read_is_refused_as_such():
    def read_denied(say: Callable[[str], None]) -> None:
        if os.getuid() == 0:
            os.setgid(65_534)
            os.setuid(65_534)
        for name in ("denied.svs", "closed/a.svs"):
            try:
                open_slide(folder / name)
            except SlideError as error:
                say(f"{error.problem}\n")

    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "denied.svs").write_bytes(b"II*\0")
        (folder / "closed").mkdir()
        (folder / "closed" / "a.svs").touch()
        (folder / "denied.svs").chmod(0)
        (folder / "closed").chmod(0)
        ended = in_child(read_denied, SILENCE_S, 1 << 40)
        (folder / "closed").chmod(0o755)
    assert ended.said.splitlines() == ["this user may not read the file", "this user may not look into its folder"]


@pytest.mark.parametrize("reader", [OpenSlideSlide, None], ids=["openslide", "direct"])
def test_a_file_that_vanishes_while_it_is_read_is_named_or_read_rightly(tmp_path, reader):
    path = write_svs(tmp_path / "a.svs", tissue_like(1000, 800), SvsOptions(240))
    with open_slide(path) as slide:
        truth = slide.read(Region(500, 500, 200, 200), 0)
    with reader(path, "asked for") if reader else open_slide(path) as slide:
        slide.read(Region(0, 0, 10, 10), 0)
        path.unlink()
        gone = None
        try:
            assert np.array_equal(slide.read(Region(500, 500, 200, 200), 0), truth)  # an open file lives on
        except SlideError as error:
            gone = error.problem
        assert gone in (None, "there is no such file")
