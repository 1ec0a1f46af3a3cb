"""The order in which units are begun, and what a run does with what becomes of them: over a pool whose time is told."""

import heapq
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from jobs.config import RunSpec
from jobs.executors import ExecSpec
from jobs.flow import Flow, Watcher
from jobs.folder import RunFolder
from jobs.halt import Halt
from jobs.last_words import Death
from jobs.lines import Line
from jobs.manifest import SlideRecord
from jobs.outcome import Outcome, Split, Unit
from jobs.receipts import DONE, FAILED, Receipt, read_receipts
from jobs.record import Record
from jobs.sessions import Session
from wsi.errors import EngineError
from wsi.publish import appear_file


def tile_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    raise AssertionError("the pool says what becomes of units")


def embed_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    raise AssertionError("the pool says what becomes of units")


def predict_slide(record: SlideRecord, spec: RunSpec, folder: RunFolder) -> Outcome:
    raise AssertionError("the pool says what becomes of units")


@dataclass
class Clock:
    """Time that passes only when somebody waits for a result; log: what happened, in order."""

    now_s: float = 0.0
    log: list[str] = field(default_factory=list)
    most: dict[str, int] = field(default_factory=dict)  # stage → units at work at a time
    expected: list[int] = field(default_factory=list)
    pools: list["Timed"] = field(default_factory=list)


@dataclass
class Timed:
    """A pool of which it is told how long each unit takes (1 s, if nothing else is said) and what becomes of it.

    gone_s  when what it is on is no longer there
    ends    "stage slide" or "stage slide part" → what the pool gives back, one after the other for the tries of a unit
    """

    stage: str
    clock: Clock
    room: int = 2
    seconds: dict[str, float] = field(default_factory=dict)
    ends: dict[str, list[Any]] = field(default_factory=dict)
    work: list[tuple[float, int, str, Any]] = field(default_factory=list)
    began: int = 0
    gone_s: float = inf

    def __post_init__(self) -> None:
        self.clock.pools.append(self)

    @property
    def busy(self) -> int:
        return len(self.work)

    def submit(self, key: str, *arguments: Any, alone: bool = False) -> None:
        assert self.busy < self.room, "a unit was begun without room"
        unit, record, split = arguments
        name = self.name_of(unit)
        assert not alone or self.busy == 0
        self.clock.log.append(f"{name}{' alone' if alone else ''}")
        self.began += 1
        end = self.clock.now_s + self.seconds.get(name, 1.0)
        heapq.heappush(self.work, (end, self.began, key, self._result(name, unit, record, split)))
        self.clock.most[self.stage] = max(self.clock.most.get(self.stage, 0), self.busy)

    def name_of(self, unit: Unit) -> str:
        part = " join" if unit.join else "" if unit.part is None else f" {unit.part}"
        return f"{unit.stage} {unit.slide_id}{part}"

    def _result(self, name: str, unit: Unit, record: SlideRecord, split: Split | None) -> Any:
        if self.ends.get(name):
            return self.ends[name].pop(0)
        if unit.part is not None:
            with appear_file(split.folder / split.name_of(unit.part)) as draft:
                draft.write_bytes(b"")
        return Receipt(unit.slide_id, unit.stage, DONE, 1.0, tiles=3, part=unit.part)

    def expect(self, waiting: int) -> None:
        self.clock.expected.append(waiting)

    def results(self, wait_s: float = 0.0) -> list[tuple[str, Any]]:
        if self.clock.now_s >= self.gone_s:
            raise EngineError("tcp://there:1", "the scheduler does not answer", "start it again")
        found = []
        until = min((pool.work[0][0] for pool in self.clock.pools if pool.work), default=0.0)
        while self.work and self.work[0][0] <= until:  # what ends next, of all pools
            self.clock.now_s, _, key, result = heapq.heappop(self.work)
            found.append((key, result))
        return found

    def tiles(self) -> dict[str, tuple[int, int]]:
        return {key: (1, 3) for _, _, key, _ in self.work}

    def close(self, kill: bool) -> None:
        self.clock.log.append(f"{self.stage} closed{', killed' if kill else ''}")


@dataclass
class Scene:
    """A flow of stages over slides, and all that was seen of it."""

    clock: Clock
    lines: list[Line]
    halt: Halt
    flow: Flow
    told: list[Receipt]

    def order(self, *stages: str) -> list[str]:
        return [what for what in self.clock.log if what.split()[0] in stages and "closed" not in what]


STAGES = (tile_slide, embed_slide, predict_slide)


def play(root: Path, records: list[SlideRecord], stages: int = 2, phased: bool = True, **facts: Any) -> Scene:
    """Run the first stages over the records; facts: `room`, `seconds` and `ends` of pools, `max_failures`."""
    spec, folder = RunSpec(jobs=ExecSpec(max_failures=facts.pop("max_failures", None))), RunFolder(root)
    facts["ends"] = {name: list(found) for name, found in facts.get("ends", {}).items()}  # they are used up
    clock, halt, told = Clock(), Halt(spec.jobs.max_failures), []
    lines = [Line(stage, {record.slide_id: record for record in records}) for stage in STAGES[:stages]]
    with Session(folder, spec) as session:
        record = Record.of(session, spec, folder)
        watchers = [Watcher(receipt=told.append) for _ in lines]
        flow = Flow(lines, lambda line: Timed(line.name, clock, **facts), record, halt, watchers, phased)
        flow.run()
    return Scene(clock, lines, halt, flow, told)


def slides(*names: str) -> list[SlideRecord]:
    return [SlideRecord(name, Path(f"{name}.svs"), name, name) for name in names]


def failed(
    stage: str, slide_id: str, problem: str = "it is damaged", cause: str = "", part: int | None = None
) -> Receipt:
    return Receipt(slide_id, stage, FAILED, 1.0, problem=problem, remedy="mend it", cause=cause, part=part)


def split_of(root: Path, slide_id: str, parts: int) -> Split:
    return Split(root / "embed" / f".parts-{slide_id}", parts, 3 * parts, lambda *_: (3, 0), lambda *_: Outcome(DONE))


def test_stages_that_share_processors_take_turns_and_others_do_not(tmp_path):
    turns = play(tmp_path / "a", slides("a", "b", "c", "d"))
    assert turns.order("tile", "embed") == [f"{stage} {slide}" for stage in ("tile", "embed") for slide in "abcd"]
    flowing = play(tmp_path / "b", slides("a", "b", "c", "d"), phased=False)
    order = flowing.order("tile", "embed")
    assert sorted(order) == sorted(turns.order("tile", "embed"))
    assert order.index("embed a") < order.index("tile d")
    assert flowing.clock.now_s < turns.clock.now_s
    assert flowing.clock.most == {"tile": 2, "embed": 2}


def test_a_slow_slide_holds_up_no_other(tmp_path):
    scene = play(tmp_path, slides(*"abcdef"), 3, phased=False, seconds={"tile a": 100.0})
    order = scene.order("tile", "embed", "predict")
    assert all(order.index(f"predict {name}") < order.index("embed a") for name in "bcdef")
    assert scene.clock.now_s == 102


def test_slides_that_are_further_go_first(tmp_path):
    scene = play(tmp_path, slides(*"abcd"), phased=False, room=1)
    assert scene.order("tile", "embed")[:4] == ["tile a", "embed a", "tile b", "embed b"]
    assert scene.order("embed") == [f"embed {name}" for name in "abcd"]


def test_a_slide_that_failed_does_not_come_to_the_next_stage(tmp_path):
    scene = play(tmp_path, slides("a", "b"), 3, ends={"embed a": [failed("embed", "a")]})
    assert scene.order("predict") == ["predict b"]
    assert [(one.slide_id, one.stage, one.status) for one in scene.told if one.status == FAILED] == [
        ("a", "embed", FAILED)
    ]
    assert scene.halt.why is None


@pytest.mark.parametrize("phased", [True, False])
def test_a_bag_waits_for_all_its_slides_and_one_that_failed_releases_it(tmp_path, phased):
    a, b, c, d = slides(*"abcd")
    grouped = [replace(a, others=(b,)), replace(b, others=(a,)), replace(c, others=(d,)), replace(d, others=(c,))]
    seconds, ends = {"tile b": 50.0, "embed d": 70.0}, {"embed c": [failed("embed", "c")], "tile b": []}
    scene = play(tmp_path, grouped, 3, phased, room=4, seconds=seconds, ends=ends)
    order = scene.order("tile", "embed", "predict")
    assert sorted(scene.order("predict")) == ["predict a", "predict b", "predict d"]
    assert order.index("embed b") < order.index("predict a")
    assert order.index("embed c") < order.index("predict d")
    assert [line.is_over for line in scene.lines] == [True] * 3


@pytest.mark.parametrize("stage", ["tile", "embed"])
def test_a_bag_whose_last_slide_fails_late_is_released_then(tmp_path, stage):
    a, b = slides("a", "b")
    grouped = [replace(a, others=(b,)), replace(b, others=(a,))]
    ends, seconds = {f"{stage} b": [failed(stage, "b")]}, {f"{stage} b": 90.0}
    scene = play(tmp_path, grouped, 3, phased=False, ends=ends, seconds=seconds)
    assert scene.order("predict") == ["predict a"]
    assert scene.clock.now_s >= 91


def test_a_slide_in_parts_is_done_before_others_are_begun_and_joined_once(tmp_path):
    ends = {"embed a": [split_of(tmp_path, "a", 3)]}
    scene = play(tmp_path, slides("a", "b"), room=1, ends=ends)
    assert scene.order("embed") == ["embed a", "embed a 0", "embed a 1", "embed a 2", "embed a join", "embed b"]
    (receipt,) = [one for one in scene.told if (one.slide_id, one.stage) == ("a", "embed")]
    assert (receipt.status, receipt.seconds) == (DONE, 4.0)  # of all its parts, too
    assert scene.lines[1].tiles == 9 + 3
    found = read_receipts(tmp_path / "receipts" / "embed.jsonl", parts=True)
    assert sorted((one.slide_id, one.part) for one in found if one.part is not None) == [("a", 0), ("a", 1), ("a", 2)]


def test_parts_that_are_there_are_not_made_again(tmp_path):
    split = split_of(tmp_path, "a", 3)
    split.folder.mkdir(parents=True)
    for number in (0, 2):
        (split.folder / split.name_of(number)).touch()
    scene = play(tmp_path, slides("a"), ends={"embed a": [split]})
    assert scene.order("embed") == ["embed a", "embed a 1", "embed a join"]
    for number in range(3):
        (split.folder / split.name_of(number)).touch()
    scene = play(tmp_path, slides("a"), ends={"embed a": [split]})
    assert scene.order("embed") == ["embed a", "embed a join"]


def test_a_part_that_fails_fails_its_slide_and_no_more_of_it_is_begun(tmp_path):
    ends = {"embed a": [split_of(tmp_path, "a", 6)], "embed a 1": [failed("embed", "a", part=1)]}
    scene = play(tmp_path, slides("a", "b"), 3, ends=ends)
    assert set(scene.order("embed")) <= {"embed a", *(f"embed a {number}" for number in range(4)), "embed b"}
    assert [(one.slide_id, one.part) for one in scene.told if one.status == FAILED] == [("a", None)]
    assert scene.order("predict") == ["predict b"]
    assert [one.slide_id for one in scene.lines[1].ordered()] == ["a", "b"]


def death(cause: str = "crash") -> Death:
    return Death("crashed: SIGSEGV", "copy it", "trace", 1.0, cause)


def test_a_unit_whose_worker_died_is_tried_again_last_and_alone(tmp_path):
    ends = {"tile a": [death()], "tile c": [death(), death()]}
    scene = play(tmp_path, slides(*"abcde"), 1, ends=ends)
    assert scene.order("tile") == [f"tile {name}" for name in "abcde"] + ["tile a alone", "tile c alone"]
    assert {one.slide_id: one.status for one in scene.told} == {**dict.fromkeys("abde", DONE), "c": FAILED}
    assert scene.lines[0].receipts["c"].problem == "crashed: SIGSEGV (also when tried again alone)"


def test_a_part_whose_worker_died_is_tried_again_and_the_slide_is_joined(tmp_path):
    ends = {"embed a": [split_of(tmp_path, "a", 3)], "embed a 1": [death("killed")]}
    scene = play(tmp_path, slides("a", "b"), ends=ends)
    assert scene.order("embed")[-2:] == ["embed a 1 alone", "embed a join"]
    assert {one.slide_id: one.status for one in scene.lines[1].ordered()} == {"a": DONE, "b": DONE}


def test_no_room_means_nothing_is_begun_and_room_may_come_and_go(tmp_path):
    scene = play(tmp_path, slides(*"abcdefgh"), phased=False, room=3)
    assert scene.clock.most == {"tile": 3, "embed": 3}
    assert scene.clock.log[-2:] == ["tile closed", "embed closed"]
    assert (scene.clock.expected[0], scene.clock.expected[-1]) == (5, 0)  # workers are asked for by what waits


# --- what ends a run, or is said aloud -------------------------------------------------------------------------------
def many(count: int) -> list[SlideRecord]:
    return slides(*(f"s{number:02d}" for number in range(count)))


def ends_of(records: list[SlideRecord], **facts: str) -> dict[str, list[Receipt]]:
    return {f"tile {one.slide_id}": [failed("tile", one.slide_id, **facts)] for one in records}


def test_twenty_slides_that_fail_alike_in_a_row_are_said_aloud_and_the_run_goes_on(tmp_path):
    records = many(30)
    scene = play(tmp_path / "a", records, 1, ends=ends_of(records[:20], problem="no codec for JPEG 2000: s1"))
    assert scene.halt.warning.startswith("20 slides in a row failed for one reason: no codec for JPEG 2000")
    assert (scene.halt.why, len(scene.told)) == (None, 30)
    scene = play(tmp_path / "b", records, 1, ends=ends_of(records[:19]))
    assert scene.halt.warning is None
    mixed = ends_of(records[:10], problem="it is short") | ends_of(records[10:], problem="it is long")
    assert play(tmp_path / "c", records, 1, ends=mixed).halt.warning.endswith("it is long")


@pytest.mark.parametrize(("limit", "is_halted"), [(0, True), (3, True), (7, False), (None, False)])
def test_a_run_ends_when_more_slides_failed_than_are_allowed(tmp_path, limit, is_halted):
    records = many(20)
    scene = play(tmp_path, records, 1, ends=ends_of(records[4:11]), max_failures=limit)
    assert (scene.halt.why is not None) is is_halted
    if is_halted:
        assert scene.halt.why == f"{limit + 1} slides failed, more than max_failures allows"
        assert len(scene.told) <= 4 + limit + 1 + 1  # one more was at work
    else:
        assert len(scene.told) == 20


def test_a_full_disk_ends_the_run_with_what_is_at_work(tmp_path):
    records = many(20)
    problem = "nothing more can be written: No space left on device (/run)"
    ends = ends_of(records[2:3], problem=problem, cause="full")
    scene = play(tmp_path, records, 2, ends=ends, seconds={"tile s03": 9.0})
    assert scene.halt.why == problem
    assert [one.status for one in scene.told] == [DONE, DONE, FAILED, DONE]
    assert scene.order("embed") == []
    assert scene.clock.log[-1] == "tile closed"
    assert not [path for path in (tmp_path / "claims").rglob("*") if path.is_file()]


def test_a_cluster_that_is_gone_ends_the_run_and_no_slide_has_failed(tmp_path):
    scene = play(tmp_path, many(9), 1, gone_s=3.0, room=1)
    assert scene.halt.why == "tcp://there:1: the scheduler does not answer"
    assert [one.status for one in scene.told] == [DONE] * 3
    assert scene.clock.log[-1] == "tile closed"
    assert not [path for path in (tmp_path / "claims").rglob("*") if path.is_file()]


def test_slides_out_of_reach_end_the_run_and_missing_ones_among_others_do_not(tmp_path):
    for name in ("there", "gone"):
        (tmp_path / name).mkdir()
    there = [SlideRecord(f"t{n}", tmp_path / "there" / f"{n}.svs", "", "") for n in range(30)]
    for record in there:
        Path(record.path).touch()
    gone = [SlideRecord(f"g{n}", tmp_path / "gone" / f"{n}.svs", "", "") for n in range(40)]
    ends = ends_of(gone, problem="a file is missing", cause="missing")
    halted = play(tmp_path / "a", there[:10] + gone, 1, ends=ends)
    assert "the slides cannot be reached: 5 in a row" in halted.halt.why
    assert str(tmp_path / "gone") in halted.halt.remedy
    assert len(halted.told) <= 10 + 5 + 1
    scattered = gone[:6] + there[:10] + gone[6:14] + there[10:]
    whole = play(tmp_path / "b", scattered, 1, ends=ends)
    assert (whole.halt.why, len(whole.told)) == (None, 44)
    last = play(tmp_path / "c", there + gone[:5], 1, ends=ends)  # nothing comes after them, but others were there
    assert (last.halt.why, len(last.told)) == (None, 35)
    later = {f"embed {one.slide_id}": [failed("embed", one.slide_id, cause="missing")] for one in there[:8]}
    again = play(tmp_path / "d", there, 2, ends=later)  # gone since they were tiled
    assert (again.halt.why, len(again.told)) == (None, 60)
    only = play(tmp_path / "e", gone[:9], 1, ends=ends)
    assert "the slides cannot be reached" in only.halt.why
