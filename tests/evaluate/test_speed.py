"""Speed is reported for the models that were asked for, in their order."""

from __future__ import annotations

from pathlib import Path

from homodistil.evaluate.speed import sentences_per_second


def test_every_model_gets_a_positive_speed(encoder: Path, masked_lm: Path) -> None:
    """Two models in, two speeds out; what they are is no matter for a test."""
    speeds = sentences_per_second([encoder, masked_lm], ["the man sees a cat"] * 4, batch=2, rounds=1)
    assert len(speeds) == 2
    assert all(speed > 0 for speed in speeds)
