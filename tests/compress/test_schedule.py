"""The schedule: a pure function of the step that only ever falls, and ends on its targets."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from homodistil.compress.schedule import Schedule, cubic

BASE = {"hidden": 768, "heads": 12, "head_dim": 64, "ffn": 3072}
HALF = {"hidden": 384, "heads": 12, "head_dim": 32, "ffn": 1536}
SMALL = {"hidden": 240, "heads": 12, "head_dim": 20, "ffn": 960}
TINY = {"hidden": 224, "heads": 7, "head_dim": 32, "ffn": 900}


def _several() -> Schedule:
    return Schedule.over(BASE, [("half", HALF), ("small", SMALL)], steps=400, ramp=(0.1, 0.7), grain=16)


def _random(seed: int) -> tuple[Schedule, list[dict[str, int]], int]:
    draw = random.Random(seed)
    shapes = [{name: draw.randint(8, width) for name, width in BASE.items()}]
    for _ in range(draw.randint(1, 3)):
        shapes.append({name: draw.randint(1, width) for name, width in shapes[-1].items()})
    low, high = sorted((draw.random(), draw.random()))
    grain = draw.choice([1, 4, 8, 16])
    steps = draw.randint(len(shapes) - 1, 120)
    targets = [(str(k), shape) for k, shape in enumerate(shapes[1:])]
    return Schedule.over(shapes[0], targets, steps=steps, ramp=(low, high), grain=grain), shapes, grain


@pytest.mark.parametrize("seed", range(20))
def test_widths_never_grow_and_end_on_each_target(seed: int) -> None:
    """Whatever the shapes, the ramp and the steps: no width ever grows, and each stage ends on its target exactly."""
    schedule, shapes, _ = _random(seed)
    path = [schedule.widths(step) for step in range(schedule.steps + 1)]
    assert all(now[w] <= before[w] for before, now in itertools.pairwise(path) for w in BASE)
    for stage, shape in zip(schedule.stages, shapes[1:], strict=True):
        assert path[stage.end] == shape


@pytest.mark.parametrize("seed", range(20))
def test_widths_on_the_way_are_multiples_of_the_grain(seed: int) -> None:
    """Between the shapes that were asked for, hidden and ffn are multiples of the grain, and nothing overshoots."""
    schedule, shapes, grain = _random(seed)
    for step in range(schedule.steps + 1):
        stage = schedule.stage(step)
        for name, width in schedule.widths(step).items():
            assert stage.after[name] <= width <= stage.before[name]
            ends = {shape[name] for shape in shapes}
            assert name not in ("hidden", "ffn") or width % grain == 0 or width in ends


def test_widths_depend_on_the_step_alone() -> None:
    """Asked in any order, and by another schedule of the same words, a step has the same widths."""
    one, other = _several(), _several()
    steps = list(range(one.steps + 1))
    forward = {step: one.widths(step) for step in steps}
    random.Random(0).shuffle(steps)
    assert all(other.widths(step) == forward[step] for step in steps)


@pytest.mark.parametrize("step", [0, 10, 20, 21, 50, 77, 100, 139, 140, 180])
def test_widths_follow_the_papers_cubic(step: int) -> None:
    """r(t) = r_f + (1 - r_f)(1 - (t - t_i)/(t_f - t_i))^3 between t_i and t_f, rounded up to the grain."""
    schedule = Schedule.over(BASE, [("small", SMALL)], steps=200, ramp=(0.1, 0.7), grain=1)
    t_i, t_f = 20, 140
    for name, width in BASE.items():
        r_f = SMALL[name] / width
        r = 1.0 if step < t_i else r_f if step >= t_f else r_f + (1 - r_f) * (1 - (step - t_i) / (t_f - t_i)) ** 3
        assert 0 <= schedule.widths(step)[name] - width * r + 1e-6 < 1 + 1e-6


@pytest.mark.parametrize(
    ("step", "left"), [(0, 1.0), (9, 1.0), (10, 1.0), (15, 0.125), (18, 0.008), (20, 0.0), (99, 0.0)]
)
def test_the_cubic_falls_from_one_to_zero(step: int, left: float) -> None:
    """The cubic is one before the ramp, an eighth half-way and zero after it."""
    assert cubic(step, 10, 20) == pytest.approx(left)


def test_rounding_errors_cost_no_unit() -> None:
    """Where the cubic meets a whole number of units, that is the width, though binary fractions lie a hair above."""
    schedule = Schedule.over({"head_dim": 64}, [("10", {"head_dim": 10})], steps=12, ramp=(0.0, 0.5), grain=8)
    # 10 + 54 (1 - 2/6)^3
    assert schedule.widths(2) == {"head_dim": 26}


def test_heads_fall_one_by_one() -> None:
    """Widths of few units visit every number on the way when there is time."""
    schedule = Schedule.over(BASE, [("tiny", TINY)], steps=1000, ramp=(0.0, 0.9), grain=8)
    assert {schedule.widths(step)["heads"] for step in range(1001)} == set(range(7, 13))


def test_layers_leave_early_and_one_by_one() -> None:
    """The depth follows the cubic to the nearest number, so that the last layer leaves before the ramp ends."""
    deep, shallow = {**BASE, "layers": 6}, {**HALF, "layers": 3}
    schedule = Schedule.over(deep, [("shallow", shallow)], steps=1000, ramp=(0.0, 0.5), grain=8)
    path = [schedule.widths(step)["layers"] for step in range(1001)]
    assert [path.index(k) for k in (5, 4, 3)] == [30, 104, 225]
    assert schedule.last_cut == 500
    only = Schedule.over(deep, [("shallow", {**deep, "layers": 3})], steps=10, ramp=(0.0, 0.0), grain=8)
    assert only.widths(0)["layers"] == 3
    assert (only.cuts_units, only.last_cut) == (False, 0)


def test_several_targets_are_passed_each_at_its_stages_end() -> None:
    """A run passes through each target at the end of an equal share of the steps, and starts the next from there."""
    schedule = _several()
    assert [(s.target, s.number, s.begin, s.ramp_start, s.ramp_end, s.end) for s in schedule.stages] == [
        ("half", 1, 0, 20, 140, 200),
        ("small", 2, 200, 220, 340, 400),
    ]
    assert schedule.widths(0) == BASE
    assert [schedule.widths(step) for step in (140, 200, 219)] == [HALF] * 3
    assert schedule.widths(222) != HALF
    assert [schedule.widths(step) for step in (340, 400, 500)] == [SMALL] * 3
    assert [schedule.stage(step).target for step in (1, 200, 201, 400, 999)] == [
        "half",
        *["half", "small"],
        *["small"] * 2,
    ]
    assert (schedule.last_cut, schedule.steps) == (340, 400)


def test_a_ramp_ends_before_its_stage() -> None:
    """A student has at least a step to settle before it is saved, even with a ramp to the end."""
    schedule = Schedule.over(BASE, [("half", HALF), ("small", SMALL)], steps=40, ramp=(0.0, 1.0), grain=8)
    assert [(s.ramp_end, s.end) for s in schedule.stages] == [(19, 20), (39, 40)]
    assert [schedule.widths(step) for step in (19, 39)] == [HALF, SMALL]


@pytest.mark.parametrize("ramp", [(0.95, 1.0), (1.0, 1.0)])
def test_a_ramp_that_starts_late_ends_before_its_stage_as_well(ramp: tuple[float, float]) -> None:
    """However few steps there are."""
    schedule = Schedule.over(BASE, [("half", HALF)], steps=10, ramp=ramp, grain=8)
    assert schedule.widths(8) == BASE
    assert schedule.widths(9) == HALF


def test_a_step_for_each_target_is_enough() -> None:
    """With as many steps as targets, each step still ends on its target."""
    schedule = Schedule.over(BASE, [("half", HALF), ("small", SMALL)], steps=2, ramp=(0.1, 0.7), grain=8)
    assert [schedule.widths(step) for step in (1, 2)] == [HALF, SMALL]


def test_nothing_to_cut_is_never_cut() -> None:
    """A target that is the teacher's own shape changes nothing and has no last cut."""
    schedule = Schedule.over(BASE, [("same", BASE)], steps=10, ramp=(0.1, 0.7), grain=7)
    assert list(schedule.changes()) == []
    assert schedule.last_cut == 0


def test_changes_are_the_steps_at_which_widths_change() -> None:
    """The changes, and nothing between them, make up the whole path; the last one is the last cut."""
    schedule = _several()
    changes = dict(schedule.changes())
    now = dict(BASE)
    for step in range(schedule.steps + 1):
        now = changes.get(step, now)
        assert now == schedule.widths(step)
    assert max(changes) == schedule.last_cut


def test_printed_without_torch() -> None:
    """A schedule is made and printed without torch, and what is printed says when what is saved."""
    program = (
        "import sys; from homodistil.compress.schedule import Schedule; "
        "print(Schedule.over({'hidden': 48, 'ffn': 96}, [('0.5', {'hidden': 24, 'ffn': 48})], "
        "steps=20, ramp=(0.1, 0.7), grain=8)); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    lines = [line.split() for line in printed.stdout.splitlines()]
    assert lines[:2] == [["step", "hidden", "ffn"], ["start", "48", "96"]]
    assert ["14", "24", "48"] in lines
    assert lines[-1] == "20: 0.5 is saved".split()


def test_cuts_at_intervals_follow_the_same_ramp_and_reach_the_same_shapes() -> None:
    """Between two of them nothing changes; at each the widths are those of the ramp, and targets are exact. Before
    the first one, importance is known from the first step on.
    """
    each = _several()
    some = replace(each, every=8)
    for step in range(each.steps + 1):
        settled = any(s.ramp_end <= step <= s.end for s in each.stages)
        assert some.widths(step) == each.widths(step if settled else step // 8 * 8)
    ends = {s.ramp_end for s in each.stages}
    assert all(step % 8 == 0 or step in ends for step, _ in some.changes())
    assert len(list(some.changes())) < len(list(each.changes()))
    assert all(some.measured(step) for step, _ in some.changes())
    assert [step for step in range(1, 17) if some.measured(step)] == [1, 8, 16]
    assert sum(some.measured(step) for step in range(1, some.steps + 1)) < some.steps / 6
