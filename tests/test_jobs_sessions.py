"""Sessions: who is at work on a run folder, told by signs of life that no clock of a host and no full disk disturbs."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.config import resolve
from jobs.folder import RunFolder
from jobs.sessions import Session
from tests.faults import Faults, fill, finish, small_disk, start_python, wait_until
from wsi import SpecError

YEAR_S = 366 * 24 * 3600

# a session that lives until its standard input is closed
LIVE = """
import sys
from pathlib import Path
import tests.faults
from jobs.config import resolve
from jobs.folder import RunFolder
from jobs.sessions import Session

with Session(RunFolder(Path(sys.argv[1])), resolve({"jobs": {"lease_s": float(sys.argv[2])}})) as session:
    print(session.id, flush=True)
    for line in sys.stdin:
        print(line.strip() in session.ids() and session.lives(line.strip()), flush=True)
"""


class Peer:
    """Such a session in a process of its own."""

    def __init__(self, root: Path, faults: Faults, lease_s: float = 2):
        self.process = subprocess.Popen(
            [sys.executable, "-c", LIVE, str(root), str(lease_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, **faults.environment(root.parent)},
        )
        self.id = self.process.stdout.readline().strip()

    def sees(self, session: str) -> bool:
        self.process.stdin.write(f"{session}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip() == "True"

    def end(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def session_on(run: Path, **settings: object) -> Session:
    return Session(RunFolder(run), resolve(settings))


def test_a_session_lives_from_its_start_to_its_end_and_says_when_that_was(run):
    with session_on(run) as session:
        peer = Peer(run, Faults())
        assert session.ids() == [peer.id]
        assert session.lives(peer.id)
        assert peer.sees(session.id)
        peer.end()
        wait_until(lambda: not session.lives(peer.id), 5)
        assert session.read(peer.id)["ended"]
        late = Peer(run, Faults())
        assert session.lives(late.id)
    assert not late.sees(session.id)
    late.end()


def test_a_killed_session_of_this_machine_is_dead_at_once_and_one_of_another_when_its_lease_is_over(run):
    with session_on(run) as session:
        here, afar = Peer(run, Faults(), 60), Peer(run, Faults(host="elsewhere"), 2)
        assert here.id.split("-")[1] != afar.id.split("-")[1]
        assert session.lives(here.id)
        assert session.lives(afar.id)
        here.kill()
        afar.kill()
        assert not session.lives(here.id)
        assert session.lives(afar.id)
        wait_until(lambda: not session.lives(afar.id), 30)


@pytest.mark.parametrize("clock_s", [YEAR_S, -YEAR_S])
def test_a_host_whose_clock_is_wrong_sees_and_is_seen_as_any_other(run, clock_s):
    with session_on(run, jobs={"lease_s": 3}) as session:
        skewed, plain = Peer(run, Faults("skewed", clock_s), 3), Peer(run, Faults("plain"), 3)
        assert abs(year_of(skewed.id) - year_of(plain.id)) == 1  # its clock is wrong indeed
        until = time.monotonic() + 3.5  # longer than the lease: only its signs of life keep it
        while time.monotonic() < until:
            assert session.lives(skewed.id)
            assert skewed.sees(plain.id)
            assert skewed.sees(session.id)
            time.sleep(0.3)
        plain.kill()
        assert skewed.sees(plain.id)
        wait_until(lambda: not skewed.sees(plain.id), 30)
        skewed.kill()
        wait_until(lambda: not session.lives(skewed.id), 30)


def year_of(session: str) -> int:
    return int(session[:4])


def test_signs_of_life_are_given_on_a_full_disk(tmp_path):
    with small_disk(tmp_path / "disk", 256) as disk, session_on(disk / "run", jobs={"lease_s": 1}) as session:
        peer = Peer(disk / "run", Faults(host="elsewhere"), 1)
        fill(disk)
        with pytest.raises(OSError, match="No space left"):
            (disk / "run" / "more").write_bytes(bytes(5000))
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert session.lives(peer.id)
            assert peer.sees(session.id)
            time.sleep(0.2)
        (disk / "filling").unlink()
        peer.end()
        assert not session.lives(peer.id)


def test_a_session_that_cannot_be_read_for_a_moment_is_not_dead(run, monkeypatch):
    with session_on(run) as session:
        peer = Peer(run, Faults(host="elsewhere"), 60)
        read = Path.open

        def stale(path: Path, *arguments: object, **options: object):
            if path.name == f"{peer.id}.json":
                raise OSError(errno.ESTALE, "Stale file handle", str(path))
            return read(path, *arguments, **options)

        monkeypatch.setattr(Path, "open", stale)  # what a network disk says of a file that was replaced
        with session_on(run, jobs={"lease_s": 1}) as fresh:
            assert fresh.lives(peer.id)
            wait_until(lambda: not fresh.lives(peer.id), 10)  # and not for ever
        assert session.lives(peer.id)
        monkeypatch.undo()
        peer.end()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 7'])
def test_a_session_whose_file_is_damaged_is_none(run, text):
    with session_on(run) as session:
        (session.root / "20260101T000000000-0123abcd-7.json").write_text(text)
        assert not session.lives("20260101T000000000-0123abcd-7")


def test_what_a_session_is_told_is_what_others_read(run):
    with session_on(run, jobs={"lease_s": 1}) as session:
        session.tell(stages={"tile": {"total": 3}}, halted="the disk is full")
        wait_until(lambda: json.loads(session.path.read_text())["halted"] == "the disk is full", 10)
    assert json.loads(session.path.read_text())["ended"]
    assert not list(session.root.glob(".draft-*"))


def tiling_on(run: Path, **settings: object) -> Session:
    return Session(RunFolder(run), resolve(settings), ("tile",))


def test_other_settings_for_tiles_are_refused_while_a_session_lives(run):
    with tiling_on(run) as first:
        with pytest.raises(SpecError, match=rf"process {os.getpid()} on \S+ is at work there since 20.*another way"):
            tiling_on(run, tile={"mpp": 1.0}).__enter__()
        assert session_on(run).ids() == [first.id]  # the refused one leaves nothing
        with tiling_on(run, jobs={"workers": 7}), tiling_on(run, embed={"dtype": "float32"}):
            pass  # these cut slides alike
        with session_on(run, tile={"mpp": 1.0}):
            pass  # and this does not cut any
    with tiling_on(run, tile={"mpp": 1.0}):
        pass


def test_the_shim_sets_the_clock_of_a_process_and_not_of_the_files_that_it_writes(tmp_path):
    code = "import sys, time; open(sys.argv[1], 'w').close(); print(time.time())"
    process = start_python(code, str(tmp_path / "file"), scratch=tmp_path, faults=Faults(clock_s=YEAR_S))
    _, text = finish(process)
    assert float(text) - time.time() > YEAR_S - 600
    assert abs((tmp_path / "file").stat().st_mtime - time.time()) < 600
