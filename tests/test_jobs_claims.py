"""Claims: of many processes one is at a unit, also where one died at it, and whatever the file system can."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from jobs.claims import Claims
from jobs.config import resolve
from jobs.folder import RunFolder
from jobs.outcome import Unit
from jobs.sessions import Session
from wsi.machine import machine_id, process_start

PROCESSES, ROUNDS, UNITS = 8, 30, 12
_context = get_context("spawn")


def refuse_links(*arguments: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def units(number: int = UNITS) -> list[Unit]:
    return [Unit("read", "a", part) for part in range(number // 2)] + [
        Unit("read", f"s-{n}") for n in range(number // 2)
    ]


def compete(root: Path, ready: Barrier, links: bool) -> None:
    """A process's rounds: claim what can be claimed in any order; then do and give up each unit once."""
    if not links:
        os.link = refuse_links
    draw = random.Random(os.getpid())
    with Session(RunFolder(root), resolve({})) as session:
        for number in range(ROUNDS):
            claims = Claims(root / f"kept-{number}", session)
            mine = draw.sample(units(), UNITS)
            ready.wait(60)
            took = [unit.name for unit in mine if claims.take(unit) is None]
            (root / f"took-{number}-{os.getpid()}.json").write_text(json.dumps(took))
            ready.wait(60)  # so that no claim is given up before all have tried
            claims.free_all()
            claims = Claims(root / f"freed-{number}", session)
            work_off(root, claims, draw.sample(units(), UNITS), number)
            claims.free_all()


def work_off(root: Path, claims: Claims, todo: list[Unit], number: int) -> None:
    """Until all units are done by somebody: do what can be claimed and is not done."""
    while todo:
        unit = todo.pop(0)
        done, inside = root / f"done-{number}-{unit.name}", root / f"inside-{number}-{unit.name}"
        if claims.take(unit) is not None:
            todo.append(unit)
            continue
        if not done.exists():
            inside.mkdir()  # raises where another is at the unit
            with (root / f"log-{os.getpid()}").open("a") as file:
                file.write(f"{number} {unit.name}\n")
            done.touch()
            inside.rmdir()
        claims.free(unit)


def run_processes(work: Callable[..., None], *arguments: object) -> None:
    """PROCESSES at once, all of which must end well."""
    ready = _context.Barrier(PROCESSES)
    processes = [_context.Process(target=work, args=(*arguments, ready)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * PROCESSES


def compete_linking(root: Path, ready: Barrier) -> None:
    compete(root, ready, True)


def compete_creating(root: Path, ready: Barrier) -> None:
    compete(root, ready, False)


@pytest.mark.heavy
@pytest.mark.parametrize("work", [compete_linking, compete_creating], ids=["hard links", "no hard links"])
def test_of_eight_processes_each_unit_is_taken_by_one_and_done_once(tmp_path, work):
    run_processes(work, tmp_path)
    for number in range(ROUNDS):
        took = [name for path in tmp_path.glob(f"took-{number}-*.json") for name in json.loads(path.read_text())]
        assert sorted(took) == sorted(unit.name for unit in units())
    done = [line for path in tmp_path.glob("log-*") for line in path.read_text().splitlines()]
    assert sorted(done) == sorted(f"{number} {unit.name}" for number in range(ROUNDS) for unit in units())
    left = [path for kind in ("kept", "freed") for path in tmp_path.glob(f"{kind}-*/read/*")]
    assert left == []
    assert not list(tmp_path.glob("*/.2*"))  # nor the files that claims are linked to


@pytest.fixture
def session(tmp_path):
    with Session(RunFolder(tmp_path), resolve({})) as session:
        yield session


def claims_of(session: Session) -> Claims:
    return Claims(session.root.parent / "claims", session)


def other(session: Session, ago_s: float = 0.0, **facts: object) -> str:
    """Another session on the folder, whose last sign of life is so old; returns its id."""
    name = f"20260101T000000000-{facts.get('machine', machine_id())}-{facts.get('pid', os.getpid())}"
    said = {**session.facts, "session": name, "start": process_start(os.getpid()), **facts}
    path = session.root / f"{name}.json"
    path.write_text(json.dumps(said))
    changed = session.path.stat().st_mtime - ago_s
    os.utime(path, (changed, changed))
    return name


def claim(session: Session, unit: Unit, holder: str, number: int = 0) -> Path:
    path = session.root.parent / "claims" / unit.stage / f"{unit.name}~{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(holder)
    return path


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


UNIT = Unit("read", "a")


@pytest.mark.parametrize(
    ("ago_s", "facts", "is_taken"),
    [
        (0, lambda: {"pid": dead_process(), "start": ""}, True),
        (0, lambda: {"pid": os.getpid(), "start": "1"}, True),  # another process had that number
        (0, lambda: {"pid": os.getpid()}, False),
        (121, lambda: {"pid": os.getpid()}, True),  # it is there, but stopped: its lease ran out
        (121, lambda: {"machine": "0123abcd", "pid": 7}, True),
        (60, lambda: {"machine": "0123abcd", "pid": 7}, False),
        (121, lambda: {"machine": "0123abcd", "pid": 7, "lease_s": 600}, False),  # its own lease counts
        (-1000, lambda: {"machine": "0123abcd", "pid": 7}, False),
        (0, lambda: {"machine": "0123abcd", "pid": 7, "ended": "2026-01-01"}, True),
    ],
    ids=["dead", "number used again", "alive", "stopped", "afar, old", "afar, fresh", "longer lease", "ahead", "ended"],
)
def test_what_others_claimed_is_taken_over_when_they_are_no_more(session, ago_s, facts, is_taken):
    claims, holder = claims_of(session), other(session, ago_s, **facts())
    path = claim(session, UNIT, holder)
    assert claims.take(UNIT) == (None if is_taken else holder)
    assert path.exists()  # nothing is removed before the unit is given up
    claims.free(UNIT)
    assert path.exists() is not is_taken


def test_a_claim_of_a_session_without_a_file_is_taken_over(session):
    claim(session, UNIT, "20260101T000000000-0123abcd-7")
    assert claims_of(session).take(UNIT) is None


def test_a_claim_over_several_dead_ones_leaves_nothing(session):
    dead = other(session, pid=dead_process(), start="")
    for number in range(3):
        claim(session, UNIT, dead, number)
    claims = claims_of(session)
    assert claims.take(UNIT) is None
    claims.free_all()
    assert not [path for path in claims.root.rglob("*") if path.is_file()]


def test_what_is_claimed_by_this_session_is_its_own_also_when_the_answer_was_lost(session):
    claims = claims_of(session)
    assert claims.take(UNIT) is None
    assert claims.take(UNIT) is None
    again = claims_of(session)  # knows nothing of the claim, as after a link whose answer a network lost
    assert again.take(UNIT) is None
    again.free(UNIT)
    assert not list((claims.root / "read").iterdir())


def test_units_of_a_slide_are_claimed_apart_but_its_whole_and_its_join_are_one(session):
    mine, theirs = claims_of(session), other(session)
    claim(session, Unit("read", "a"), theirs)
    assert mine.take(Unit("read", "a", 0)) is None
    assert mine.take(Unit("read", "a", 1)) is None
    assert mine.take(Unit("draw", "a")) is None
    assert mine.take(Unit("read", "a", join=True)) == theirs


@pytest.mark.parametrize(("ago_s", "is_taken"), [(0, False), (121, True)])
def test_a_claim_that_does_not_say_yet_whose_it_is_holds_for_a_lease(session, ago_s, is_taken):
    path = claim(session, UNIT, "")
    changed = session.path.stat().st_mtime - ago_s
    os.utime(path, (changed, changed))
    assert claims_of(session).take(UNIT) == (None if is_taken else "")


@pytest.mark.parametrize("stop", [1, 2])
def test_a_session_killed_while_it_gives_a_unit_up_leaves_it_to_be_taken(session, stop, monkeypatch):
    dead = other(session, pid=dead_process(), start="")
    for number in range(2):
        claim(session, UNIT, dead, number)
    claims, left = claims_of(session), [stop]
    assert claims.take(UNIT) is None
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        claims.free(UNIT)
    monkeypatch.undo()
    session.tell(ended="now")
    session.beat()
    with Session(RunFolder(session.root.parent), resolve({})) as later:
        assert claims_of(later).take(UNIT) is None


def take_over(root: Path, number: int, ready: Barrier) -> None:
    with Session(RunFolder(root), resolve({})) as session:
        claims = Claims(root / "claims", session)
        ready.wait(60)
        took = [unit.name for unit in units(number) if claims.take(unit) is None]
        (root / f"took-{os.getpid()}.json").write_text(json.dumps(took))
        ready.wait(60)


def test_of_eight_processes_one_takes_over_each_claim_of_a_dead_one(tmp_path):
    with Session(RunFolder(tmp_path), resolve({})) as session:
        dead = other(session, pid=dead_process(), start="")
        for unit in units(200):
            for number in range(1 + len(unit.name) % 2):
                claim(session, unit, dead, number)
        run_processes(take_over, tmp_path, 200)
    took = [name for path in tmp_path.glob("took-*.json") for name in json.loads(path.read_text())]
    assert sorted(took) == sorted(unit.name for unit in units(200))
