"""A sweep played through: order, waiting for trunks, start-up and compilation."""

import dataclasses

import pytest

from gptjax import Sweep
from gptjax.sweeps.grid import rows, values
from gptjax.sweeps.measure import Cost
from gptjax.sweeps.schedule import POLL_SECONDS, REPORT_SECONDS, RUNNER_SECONDS, schedule
from tests.conftest import changed
from tests.sweeps.synthetic import BASE

COST = Cost(start=5.0, begin=3.0, run=1.0, step=0.1, evaluation=0.5, save=0.2, when=0.0)
FRAME = RUNNER_SECONDS + POLL_SECONDS + REPORT_SECONDS
TRAIN = {"eval_every": 1 << 30, "checkpoint_every": 50}
ONE = changed(BASE, train={"steps": 100, **TRAIN})


def costs(sweep, cost=COST):
    return {point.program: cost for point in sweep.points}


def test_a_run_costs_its_steps_evaluations_and_saves():
    assert COST.seconds(ONE) == pytest.approx(1 + 100 * 0.1 + 0.5 + 2 * 0.2)
    assert COST.seconds(ONE, since=60) == pytest.approx(1 + 40 * 0.1 + 0.5 + 0.2)
    tenths = changed(ONE, train={"eval_every": 0, "checkpoint_every": 0})
    assert COST.seconds(tenths) == pytest.approx(1 + 100 * 0.1 + 10 * 0.7)


def test_workers_share_points_and_load_each_program_once():
    sweep = Sweep("seeds", ONE, values("train.seed", 0, 1, 2, 3))
    run = COST.seconds(ONE)
    two = schedule(sweep.points, costs(sweep), 2)
    assert two.wall == pytest.approx(FRAME + 5 + 3 + 2 * run)
    one = schedule(sweep.points, costs(sweep), 1)
    assert one.wall == pytest.approx(FRAME + 5 + 3 + 4 * run)
    assert one.alone == pytest.approx(one.wall - POLL_SECONDS) == two.alone
    assert set(two.points.values()) == {run}
    unknown = dict.fromkeys(costs(sweep), "too large for this CPU")
    assert schedule(sweep.points, unknown, 2) is None and schedule((), {}, 2) is None


def test_the_program_at_hand_goes_first_then_the_costliest():
    grid = rows({"train.steps": 60}, {"train.steps": 50}, {"model.d_ff": 1024})
    sweep = Sweep("order", ONE, grid)
    begins = schedule(sweep.points, costs(sweep), 1).begins
    assert [label.split("-")[0] for label in sorted(begins, key=begins.get)] == [
        "d_ff", "steps", "steps",
    ]  # fmt: skip
    long, short, _ = sweep.points
    assert begins[long.name] < begins[short.name]


def test_a_branch_waits_for_its_trunk_in_a_new_worker():
    optim = {"schedule": "wsd", "warmup_steps": 3, "warmup_fraction": 0.0, "decay_fraction": 0.3}
    base = changed(ONE, optim=optim)
    sweep = Sweep("trunk", base, values("train.steps", 100, 50), share_trunks=True)
    trunk, branch = sweep.points
    cost = dataclasses.replace(COST, run=0.0)
    found = schedule(sweep.points, costs(sweep, cost), 2, share_trunks=True)
    reached = RUNNER_SECONDS + 5 + 3 + 35 * 0.1
    assert found.begins[branch.name] == pytest.approx(reached + POLL_SECONDS + 5)
    assert found.points[branch.name] == pytest.approx(15 * 0.1 + 0.5 + 0.2)
    apart = schedule(sweep.points, costs(sweep, cost), 2, share_trunks=False)
    assert apart.begins[branch.name] == apart.begins[trunk.name]
