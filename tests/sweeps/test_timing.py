"""What is measured is kept for a day, by program and place; a program that fails says why."""

import dataclasses
import json
import threading
import time

import pytest

from gptjax import Sweep, data
from gptjax.errors import BadInput
from gptjax.sweeps import timing
from gptjax.sweeps.grid import rows
from gptjax.sweeps.measure import Cost, measure_programs
from gptjax.sweeps.timing import Place, age, find_place, measured, store_of
from tests.conftest import changed

PLACE = Place("a device", "cpu", ((0,), (1,)))


@pytest.fixture
def sweep(tiny, tmp_path) -> Sweep:
    base = changed(tiny, data={"cache_dir": str(tmp_path)})
    return Sweep("two", base, rows({"optim.lr": 1e-3}, {"optim.lr": 2e-3}, {"model.d_ff": 24}))


@pytest.fixture
def asked(monkeypatch):
    """The programs that were measured, call by call."""
    calls = []

    def measure(programs, place):
        calls.append(set(programs))
        for program in programs:
            yield program, Cost(5.0, 3.0, 1.0, 0.1 * len(calls), 0.1, 0.1, time.time())

    monkeypatch.setattr(timing, "_measure", measure)
    monkeypatch.setattr(data, "prepare", lambda *_, **__: None)
    return calls


def test_figures_are_kept_by_program_and_place(sweep, asked, monkeypatch):
    first = measured(sweep.points, PLACE)
    assert measured(sweep.points, PLACE) == first and len(asked) == 1
    assert asked[0] == {point.program for point in sweep.points} and len(asked[0]) == 2
    assert age(first) < 60 and age({}) == age({"a": "unknown"}) == 0.0
    measured(sweep.points, dataclasses.replace(PLACE, shares=((0, 1),)))
    other = [changed(p.experiment, train={"eval_batches": 3}) for p in sweep.points[:1]]
    measured([dataclasses.replace(sweep.points[0], experiment=other[0])], PLACE)
    assert [len(programs) for programs in asked] == [2, 2, 1]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    assert measured(sweep.points, PLACE) != first and len(asked) == 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "null"])
def test_a_damaged_store_is_written_anew(sweep, asked, content):
    store = store_of(sweep.base)
    store.write_text(content)
    measured(sweep.points, PLACE)
    measured(sweep.points, PLACE)
    assert len(asked) == 1 and len(json.loads(store.read_text())) >= 2


def test_runs_that_cannot_be_made_say_why(tiny):
    large = changed(tiny, data={"batch_size": 1 << 20})
    wide = changed(tiny, mesh={"data": 16})
    damaged = changed(tiny, data={"files": ("/nowhere/*.txt",)})
    why = list(measure_programs([large, wide, damaged]))
    assert "too large for this CPU" in why[0] and "16 devices" in why[1] and "nowhere" in why[2]


def test_progress_and_a_busy_machine(sweep, monkeypatch):
    monkeypatch.setattr(data, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(timing, "SAY_SECONDS", -1.0)

    def measure(programs, place):
        for i, program in enumerate(programs):
            yield "", None
            yield program, Cost(5.0, 3.0, 1.0, 0.1, 0.1, 0.1, time.time(), cpu=0.3 + 0.6 * i)

    monkeypatch.setattr(timing, "_measure", measure)
    said, checked = [], []
    found = measured(sweep.points, PLACE, said.append, lambda costs: checked.append(len(costs)))
    assert checked == [0, 1, 2] and "0 of 2 programs after" in said[1]
    assert "1 of 2 programs · 0 s a program · 00:00 left" in said[2]
    assert "busy with other work (a measurement got 30% of a core): these times" in said[-1]
    assert len(json.loads(store_of(sweep.base).read_text())) == 1
    assert timing.busy(found) and not timing.busy({"a": "unknown"})
    timing.forget(sweep.base)
    assert not store_of(sweep.base).exists()


def test_who_comes_second_reads_what_the_first_measured(sweep, asked):
    said, threads, real = [], [], timing._measure

    def measure(programs, place):
        again = lambda: said.append(measured(sweep.points, PLACE, said.append))
        threads.append(threading.Thread(target=again))
        threads[0].start()
        while not said:
            time.sleep(0.01)
        yield from real(programs, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_measure", measure)
        first = measured(sweep.points, PLACE)
        threads[0].join()
    assert said == ["waiting for another that measures", first] and len(asked) == 1


def test_places():
    here = find_place("here", 0, 5)
    assert here.workers == 1 and here.here and here.shares == ((),)
    with pytest.raises(BadInput, match="--launcher=ray works on other machines"):
        find_place("ray", 0, 5)


def test_processes_answer_for_their_programs(sweep):
    base = changed(sweep.base, model={"d_model": 8192, "num_layers": 8})
    large = Sweep("large", base, rows({"model.d_ff": 24}, {"model.d_ff": 32}))
    found = measured(large.points, find_place("local", 2, 2))
    assert len(found) == 2
    assert all("too large for this CPU" in why for why in found.values())
