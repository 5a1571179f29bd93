"""When how much is cut: widths as a pure function of the step. No torch.

A run with several targets has a stage for each. A stage ramps the widths down from the shape before it to its
target's, along the cubic of the paper, and then stays there to settle; at its last step the student is saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from homodistil.axes.shape import LAYERS, Shape


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The way to one target: constant until `ramp_start`, cubic until `ramp_end`, constant until `end`.

    Steps count finished optimizer steps; all of them are absolute. `number` counts stages from 1.
    """

    target: str
    number: int
    before: Shape
    after: Shape
    begin: int
    ramp_start: int
    ramp_end: int
    end: int

    @property
    def cuts_units(self) -> bool:
        """Whether any width changes but the number of layers."""
        return {**self.before, LAYERS: 0} != {**self.after, LAYERS: 0}


@dataclass(frozen=True)
class Schedule:
    """Widths over a whole run. Print it to see where they change.

    Attributes:
        stages: one for each target.
        grain: hidden and ffn fall to multiples of it on the way.
        every: on a ramp widths fall only at multiples of that many steps, and at its end.
    """

    stages: tuple[Stage, ...]
    grain: int
    every: int = 1

    @classmethod
    def over(
        cls,
        start: Shape,
        targets: Sequence[tuple[str, Shape]],
        *,
        steps: int,
        ramp: tuple[float, float],
        grain: int,
    ) -> Schedule:
        """Share `steps` equally among the targets, in the order in which they come.

        Args:
            start: the widths at the start.
            targets: each target's name and widths; none wider than the one before it.
            steps: optimizer steps of the whole run; at least one for each target.
            ramp: where in its stage a ramp starts and ends, as fractions (t_i and t_f of the paper).
            grain: hidden and ffn fall to multiples of it on the way.
        """
        stages, before, begin = [], start, 0
        for k, (name, after) in enumerate(targets):
            end = round(steps * (k + 1) / len(targets))
            length = end - begin
            # a ramp ends at least a step before its stage, so that a student is never saved unsettled
            ramp_start, ramp_end = (max(begin, min(begin + round(share * length), end - 1)) for share in ramp)
            times = {"begin": begin, "ramp_start": ramp_start, "ramp_end": ramp_end, "end": end}
            stages.append(Stage(target=name, number=k + 1, before=before, after=after, **times))
            before, begin = after, end
        return cls(tuple(stages), grain)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.stages[-1].end

    def stage(self, step: int) -> Stage:
        """The stage that the `step`-th step belongs to, counted from 1; the last one for later steps."""
        return next((s for s in self.stages if step <= s.end), self.stages[-1])

    def widths(self, step: int) -> dict[str, int]:
        """The widths after `step` finished steps. Never grow with the step; exact at each target."""
        stage = self.stage(step)
        at = step if step >= stage.ramp_end else step // self.every * self.every
        ratio = cubic(at, stage.ramp_start, stage.ramp_end)
        return {name: self._fall(name, before, stage.after[name], ratio) for name, before in stage.before.items()}

    @property
    def last_cut(self) -> int:
        """The step after which no unit is cut any more; layers may leave later."""
        return next((s.ramp_end for s in reversed(self.stages) if s.cuts_units), 0)

    def measured(self, step: int) -> bool:
        """Whether importance is measured at a step: at the first, and wherever units may be cut after it."""
        ends = any(step == s.ramp_end for s in self.stages)
        return step <= self.last_cut and (step == 1 or step % self.every == 0 or ends)

    @property
    def cuts_units(self) -> bool:
        """Whether any unit is cut at all, and not only whole layers."""
        return any(s.cuts_units for s in self.stages)

    def changes(self) -> Iterator[tuple[int, dict[str, int]]]:
        """Each step after which a width is another than before, with the widths then."""
        before = dict(self.stages[0].before)
        for step in range(self.steps + 1):
            if (now := self.widths(step)) != before:
                yield step, now
            before = now

    def __str__(self) -> str:
        names = list(self.stages[0].before)
        rows = [["step", *names], ["start", *(str(w) for w in self.stages[0].before.values())]]
        rows += [[str(step), *(str(w) for w in widths.values())] for step, widths in self.changes()]
        rows += [[f"{s.end}: {s.target} is saved"] for s in self.stages]
        return "\n".join("  ".join(f"{cell:>8}" for cell in row) for row in rows)

    def _fall(self, name: str, before: int, after: int, ratio: float) -> int:
        width = after + (before - after) * ratio
        if width == after:
            return after
        if name == LAYERS:
            # to the nearest whole number: layers are few, and what stays should have long to take over
            return math.floor(width + 0.5)
        # heads and head_dim count few units, each of them wide: they fall one by one
        grain = self.grain if name in ("hidden", "ffn") else 1
        # a hair below, because 0.1 + 0.2 must not cost a grain
        return max(after, min(before, math.ceil(width / grain - 1e-9) * grain))


def cubic(step: int, start: int, end: int) -> float:
    """What is left of the way at a step: 1 before `start`, (1 - progress)³ on the ramp, 0 from `end` on.

    With it, a width is `after + (before - after) * cubic(...)`, which is the paper's
    r_f + (1 - r_f)(1 - (t - t_i)/(t_f - t_i))³ times the width before (HomoDistil, section 3, after Zhu and
    Gupta 2017).
    """
    if step >= end:
        return 0.0
    return 1.0 if step < start else (1 - (step - start) / (end - start)) ** 3
