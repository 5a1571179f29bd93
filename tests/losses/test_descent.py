"""Layers and heads are compared with those that they come from."""

from __future__ import annotations

from homodistil.losses.descent import opposite


def test_a_shallow_student_is_compared_with_evenly_spaced_layers() -> None:
    """The last layer with the last, the others evenly between; a student of equal depth with each."""
    assert opposite(3, range(6)) == [1, 3, 5]
    assert opposite(2, range(6)) == [2, 5]
    assert opposite(1, range(4)) == [3]
    assert opposite(4, range(4)) == [0, 1, 2, 3]
