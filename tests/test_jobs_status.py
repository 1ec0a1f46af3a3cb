"""What is said of a run from its folder alone."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.config import resolve
from jobs.folder import RunFolder
from jobs.follow import AT_WORK, ENDED, LOST, RECENT_S, Follower, file_clock
from jobs.sessions import Session
from jobs.slide_list import keep_list, read_list
from jobs.status import Status, read_status, write_status
from tests.run_folders import AFAR, Writer, at, stage

IDS = [f"s{number:02d}" for number in range(10)]


def look(root: Path) -> Status:
    return read_status(Follower(root))


def ended(writer: Writer, **facts: object) -> Writer:
    return writer.say(ended=at(time.time()), exit=0, **facts)


def test_a_run_at_work_is_told_by_its_session(tmp_path):
    one = Writer(tmp_path, "one").write_many("tile", IDS[:5], tiles=100).write("tile", IDS[5], "failed", problem="torn")
    running = [{"stage": "tile", "slide_id": IDS[6], "part": None, "seconds": 2.0, "tiles": 50, "of": 100}]
    tile = stage(10, done=4, empty=1, failed=1, running=1, tiles=400, active_s=10, busy_s=15, room=2)
    one.say(stages={"tile": tile, "embed": stage(10)}, running=running, dashboard="http://127.0.0.1:8787")
    found = look(tmp_path)
    first, second = found.stages
    assert (first.total, first.done, first.empty, first.failed, first.running, first.queued) == (10, 4, 1, 1, 1, 3)
    assert (second.total, second.queued) == (9, 9)  # the one that failed does not come
    assert found.state == "running"
    assert found.exit_code == 0
    assert found.slides == {"total": 10, "done": 0, "failed": 1, "missing": 9}
    assert first.busy == 0.75
    assert found.sessions[0].dashboard == "http://127.0.0.1:8787"
    assert found.limits is not None
    assert found.limits[0] == "tile"
    assert found.slow[0].slide_id == IDS[6]


def test_the_rate_is_of_all_sessions_and_of_what_is_at_work(tmp_path):
    """100 tiles/s by one that has finished slides, 5 by one at work on its first; a slide takes 200 tiles."""
    one, two = Writer(tmp_path, "one"), Writer(tmp_path, "two", skew_s=-5000)
    for number in range(5):
        one.write("tile", IDS[number], "done", ago_s=number, tiles=200, seconds=1.0)
    tile = stage(10, done=5, tiles=1000, active_s=10, busy_s=20, room=2)
    one.say(stages={"tile": tile})
    unit = {"stage": "tile", "slide_id": IDS[6], "part": None, "seconds": 20.0, "tiles": 100, "of": 200}
    two.say(stages={"tile": stage(10, skipped=5, running=1, active_s=20, room=2)}, running=[unit])
    found = look(tmp_path).stages[0]
    assert found.tiles_per_s == pytest.approx(105, rel=0.02)
    assert found.remaining_s == pytest.approx((5 * 200 - 100) / 105, rel=0.02)


def test_what_ended_since_the_last_sign_of_life_is_known_from_receipts(tmp_path):
    one = Writer(tmp_path, "one").write_many("tile", IDS[:3]).write("embed", "big", "done", part=0)
    at_work = [{"stage": "tile", "slide_id": slide, "part": None, "seconds": 9.0} for slide in IDS[1:4]]
    parts = [{"stage": "embed", "slide_id": "big", "part": part, "seconds": 9.0} for part in (0, 1)]
    tile = stage(10, done=1, running=3, queued=6, room=3, active_s=9)
    one.say(ago_s=9, stages={"tile": tile, "embed": stage(10, running=2)}, running=at_work + parts)
    found = look(tmp_path)
    assert (found.stages[0].done, found.stages[0].running, found.stages[0].queued) == (3, 1, 6)
    assert {(unit.slide_id, unit.part) for unit in found.slow} == {("s03", None), ("big", 1)}


def test_a_slide_that_failed_before_and_is_tried_again_is_to_come(tmp_path):
    old = Writer(tmp_path, "old").write_many("tile", IDS[:9]).write("tile", IDS[9], "failed")
    ended(old, stages={"tile": stage(10, done=9, failed=1)}, started=at(time.time() - 9000))
    again = {"tile": stage(10, skipped=9, queued=1, room=1)}
    Writer(tmp_path, "new").say(stages=again, slides=keep_list(tmp_path, IDS))
    found = look(tmp_path)
    assert (found.slides["done"], found.slides["failed"], found.slides["missing"]) == (9, 0, 1)


def test_parts_count_as_tiles_and_not_as_slides(tmp_path):
    one = Writer(tmp_path, "one")
    for part in range(4):
        one.write("embed", "big", "done", ago_s=4 - part, tiles=1000, seconds=1.0, part=part)
    one.write("embed", "big", "done", tiles=4000, seconds=4.2)
    parts = {"stage": "embed", "slide_id": "next", "part": 3, "seconds": 4.0, "tiles": 0, "of": 1000}
    one.write("embed", "joined", "done", ago_s=99, seconds=1.0, part=0)
    one.write("embed", "whole", "done", ago_s=99, seconds=3.0)
    join = {"stage": "embed", "slide_id": "joined", "part": None, "seconds": 1.0, "tiles": 0, "of": 0}
    embed = stage(3, done=1, running=2, tiles=4000, active_s=10, busy_s=10, room=2)
    one.say(stages={"embed": embed}, running=[parts, join])
    found = look(tmp_path)
    assert found.stages[0].tiles_per_s == pytest.approx(400, rel=0.02)
    assert found.stages[0].slides_per_s == pytest.approx(0.1, rel=0.02)
    slow = {unit.slide_id: unit for unit in found.slow}
    assert slow["next"].median_s == 1.0
    assert slow["joined"].median_s is None  # of joins no time is known: a receipt has that of the parts in it


@pytest.mark.parametrize(
    ("tile", "embed", "expected"),
    [
        ({"room": 0}, {"room": 0}, ("tile", "waiting for workers")),
        ({"room": 2, "held": 3}, {"room": 2}, ("tile", "waiting for other sessions")),
        ({"room": 2, "running": 1}, {"room": 2}, ("tile", "no slide has come through yet")),
    ],
)
def test_what_limits_a_run_in_which_nothing_moves(tile, embed, expected, tmp_path):
    running = [{"stage": "tile", "slide_id": "a", "seconds": 1}] if "running" in tile else []
    Writer(tmp_path, "one").say(stages={"tile": stage(9, **tile), "embed": stage(9, **embed)}, running=running)
    assert look(tmp_path).limits == expected


def test_a_stage_that_waits_for_another_is_not_the_one_that_limits(tmp_path):
    """Both let a slide a second through; the tilers never rest, the embedder does nine tenths of the time."""
    one = Writer(tmp_path, "one")
    for number in range(4):
        one.write("tile", IDS[number], "done", ago_s=number + 0.5, tiles=10, seconds=1.0)
        one.write("embed", IDS[number], "done", ago_s=number, tiles=10, seconds=0.1)
    tile = stage(100, done=4, active_s=4, busy_s=8, room=2)
    one.say(stages={"tile": tile, "embed": stage(100, done=4, active_s=4, busy_s=0.4, room=1)})
    assert look(tmp_path).limits == ("tile", "its workers are busy 100% of the time, and it has the longest time left")


def test_sessions_that_died_are_told_from_those_at_work(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    Writer(tmp_path, "here").say()
    Writer(tmp_path, "killed").say(pid=child.pid, start="")
    Writer(tmp_path, "reused").say(start="1")  # its process number is another process's now
    Writer(tmp_path, "afar", skew_s=9000).say(ago_s=100, machine=AFAR)
    Writer(tmp_path, "silent", skew_s=9000).say(ago_s=200, machine=AFAR)
    Writer(tmp_path, "short").say(ago_s=20, machine=AFAR, lease_s=10)
    Writer(tmp_path, "over").say(ago_s=9000, ended=at(time.time()))
    states = {one.session: one.state for one in look(tmp_path).sessions}
    lost = dict.fromkeys(("killed", "reused", "silent", "short"), LOST)
    assert states == {"here": AT_WORK, "afar": AT_WORK, "over": ENDED, **lost}
    assert sorted(path.stem for path in (tmp_path / "sessions").iterdir()) == sorted(states)  # no probe stays


def test_a_real_session_is_at_work_until_it_ends(tmp_path):
    with Session(RunFolder(tmp_path), resolve({}), ("tile",)) as session:
        session.tell(stages={"tile": stage(3, queued=3)}, slides=keep_list(tmp_path, "abc"))
        session.beat()
        found = look(tmp_path)
        assert [one.state for one in found.sessions] == [AT_WORK]
        assert found.state == "running"
    found = look(tmp_path)
    assert [one.state for one in found.sessions] == [ENDED]
    assert (found.state, found.missing, found.exit_code) == ("incomplete", ["a", "b", "c"], 1)


def test_a_run_that_ended_well_is_complete(tmp_path):
    one = Writer(tmp_path, "one").write_many("tile", IDS[:9]).write_many("tile", IDS[9:], "empty")
    ended(one.write_many("embed", IDS), stages={"tile": stage(10, done=9, empty=1), "embed": stage(10, done=10)})
    found = look(tmp_path)
    assert (found.state, found.exit_code) == ("complete", 0)
    assert found.verdict == "complete: 10 of 10 slides have a result (10 done or empty, 0 failed)"


def test_failures_are_counted_by_cause_and_end_with_1(tmp_path):
    one = Writer(tmp_path, "one").write_many("tile", IDS[:6])
    for number in (6, 7):
        one.write("tile", IDS[number], "failed", 60 - number, cause="timeout", problem="timeout: no tile for 120 s")
    for number in (8, 9):
        problem = f"{number} of 130 tiles lie outside /data/{number}.svs (read), which is odd"
        one.write("tile", IDS[number], "failed", 20 - number, problem=problem, remedy="copy it again")
    ended(one, stages={"tile": stage(10, done=6, failed=4)})
    found = look(tmp_path)
    assert (found.state, found.exit_code) == ("complete", 1)
    assert found.causes == {"hung: given up at the deadline": 2, "… of … tiles lie outside …": 2}
    assert [failure.slide_id for failure in found.failures] == ["s09", "s08", "s07", "s06"]
    assert found.failures[0].remedy == "copy it again"


def test_a_slide_that_failed_and_then_did_not_has_not_failed(tmp_path):
    Writer(tmp_path, "one").write("tile", "a", "failed", 50, problem="torn").say(ended=at(time.time()))
    two = Writer(tmp_path, "two").write("tile", "a", "done")
    ended(two, stages={"tile": stage(1, done=1)})
    found = look(tmp_path)
    assert (found.verdict.partition(":")[0], found.failures, found.exit_code) == ("complete", [], 0)


def test_after_a_kill_receipts_know_more_than_the_last_sign_of_life(tmp_path):
    one = Writer(tmp_path, "one").write_many("tile", IDS[:7])
    one.say(ago_s=500, machine=AFAR, stages={"tile": stage(10, done=2)})
    found = look(tmp_path)
    assert (found.state, found.exit_code) == ("incomplete", 1)
    assert found.slides == {"total": 10, "done": 7, "failed": 0, "missing": 3}


def test_slides_without_a_result_are_named(tmp_path):
    one = Writer(tmp_path, "one").write_many("tile", IDS).write_many("embed", IDS[2:]).write("embed", IDS[0], "failed")
    stages = {"tile": stage(10, done=10), "embed": stage(10, done=10)}  # whatever it says of itself
    ended(one, stages=stages, slides=keep_list(tmp_path, IDS))
    found = look(tmp_path)
    assert found.missing == ["s01"]
    assert found.slides == {"total": 10, "done": 8, "failed": 1, "missing": 1}
    assert found.exit_code == 1


def test_an_array_of_sessions_with_slides_of_their_own_is_one_run(tmp_path):
    for name, ids in (("one", IDS[:5]), ("two", IDS[5:])):
        writer = Writer(tmp_path, name).write_many("tile", ids)
        ended(writer, stages={"tile": stage(5, done=5)}, slides=keep_list(tmp_path, ids))
    assert look(tmp_path).verdict == "complete: 10 of 10 slides have a result (10 done or empty, 0 failed)"


def test_a_list_of_slides_is_whole_or_not_there(tmp_path):
    name = keep_list(tmp_path, reversed(IDS))
    assert read_list(tmp_path, name) == frozenset(IDS)
    path = tmp_path / "lists" / f"{name}.txt"
    path.write_text(path.read_text()[:-4])
    assert read_list(tmp_path, name) is None


def test_settings_that_changed_are_another_run(tmp_path):
    old = Writer(tmp_path, "old").write_many("tile", IDS).write("tile", IDS[0], "failed")
    ended(old, asked="other", stages={"tile": stage(10, done=9, failed=1)}, started=at(time.time() - 9000))
    new = Writer(tmp_path, "new").write_many("tile", IDS[:2])
    ended(new, stages={"tile": stage(2, done=2)})
    assert look(tmp_path).slides == {"total": 2, "done": 2, "failed": 0, "missing": 0}


def test_results_of_other_settings_are_none(tmp_path):
    old = Writer(tmp_path, "old").write_many("tile", IDS)
    ended(old, asked="other", stages={"tile": stage(10, done=10)}, started=at(time.time() - 9000))
    new = Writer(tmp_path, "new").write_many("tile", IDS[:2])
    new.say(ago_s=500, machine=AFAR, stages={"tile": stage(10, done=2)}, slides=keep_list(tmp_path, IDS))
    assert look(tmp_path).missing == IDS[2:]


def test_what_was_there_already_is_no_work(tmp_path):
    one = Writer(tmp_path, "one").write("tile", "a", "skipped", tiles=900).write("tile", "b", "done", tiles=100)
    one.say(stages={"tile": stage(10, done=1, skipped=1, active_s=10, room=1)})
    assert look(tmp_path).stages[0].tiles_per_s == pytest.approx(10, rel=0.02)


def test_damaged_files_are_left_out_and_said(tmp_path):
    one = Writer(tmp_path, "one").write_many("tile", IDS[:3])
    ended(one, stages={"tile": stage(3, done=3), "odd": 7}, running="?", lease_s=None, started=5)
    (tmp_path / "sessions" / "half.json").write_text('{"session": "half", "pi')
    (tmp_path / "sessions" / "list.json").write_text("[]")
    receipts = tmp_path / "receipts" / "tile.one.jsonl"
    receipts.write_bytes(receipts.read_bytes() + b'{"slide_id": "s0\n\xff\xfe\n[1]\n' + b'{"slide_id": "being wri')
    found = look(tmp_path)
    assert (found.state, found.slides["done"]) == ("complete", 3)
    assert found.notes == [
        "receipts/tile.one.jsonl: 3 lines cannot be read, cut short by a kill or damaged",
        "sessions/half.json cannot be read: it is left out",
        "sessions/list.json cannot be read: it is left out",
    ]


def test_a_session_of_which_little_is_known_is_told_nevertheless(tmp_path):
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / "bare.json").write_text("{}")
    found = look(tmp_path)
    assert [one.state for one in found.sessions] == [AT_WORK]  # of a machine not known, and it was written just now
    assert found.verdict == "not complete: work has not begun"


def test_a_run_of_an_earlier_version_is_told_from_its_receipts(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    Writer(tmp_path, "").write("tile", "a", "done").write("tile", "b", "failed", problem="torn").write(
        "embed", "a", "done"
    )
    found = look(tmp_path)
    assert found.slides == {"total": 2, "done": 1, "failed": 1, "missing": 0}
    assert found.exit_code == 1
    assert "nothing is known" in found.notes[0]


def test_where_nothing_is_there_is_no_run(tmp_path):
    assert look(tmp_path / "none").exit_code == 2


def test_only_what_was_added_is_read_again(tmp_path):
    one = Writer(tmp_path, "one").write_many("tile", IDS[:4]).say(stages={"tile": stage(10)})
    follower = Follower(tmp_path)
    follower.look()
    receipts = tmp_path / "receipts" / "tile.one.jsonl"
    receipts.write_bytes(b"x" * receipts.stat().st_size)  # what was read is not looked at again
    one.write_many("tile", IDS[4:7])
    follower.look()
    assert set(follower.latest["one", "tile"]) == set(IDS[:7])
    assert follower.notes == []


def test_what_is_long_over_is_no_part_of_the_rate(tmp_path):
    one = Writer(tmp_path, "one").write("tile", "a", "done", ago_s=RECENT_S + 5, tiles=500, seconds=1.0)
    one.say(stages={"tile": stage(10, done=1, active_s=5000, busy_s=1, room=1)})
    follower = Follower(tmp_path)
    assert read_status(follower).stages[0].tiles_per_s == 0
    assert follower.work == []  # so that a long run's is not kept


def test_clocks_of_hosts_do_not_matter(tmp_path):
    """A host whose clock is two hours ahead finished a slide just now."""
    one = Writer(tmp_path, "one", skew_s=7200).write("tile", "a", "done", tiles=500, seconds=1.0)
    one.say(stages={"tile": stage(10, done=1, active_s=10, busy_s=10, room=1)})
    assert look(tmp_path).stages[0].tiles_per_s == pytest.approx(50, rel=0.02)


def test_a_folder_that_cannot_be_written_has_no_clock(tmp_path):
    assert file_clock(tmp_path / "none") is None
    assert file_clock(tmp_path) == pytest.approx(time.time(), abs=60)


def test_status_json_says_the_same_to_programs(tmp_path):
    ended(Writer(tmp_path, "one").write_many("tile", IDS), stages={"tile": stage(10, done=10)})
    status = write_status(Follower(tmp_path))
    plain = json.loads((tmp_path / "status.json").read_text())
    assert (plain["schema"], plain["state"], plain["exit_code"]) == ("status/1", "complete", 0)
    assert plain["stages"][0]["done"] == status.stages[0].done == 10
    assert plain["sessions"][0]["session"] == "one"
