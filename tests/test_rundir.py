"""What is said of a save that fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from homodistil.rundir import disk_failure


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_a_full_disk_is_told_from_a_place_that_cannot_be_written_to(number: int, kind: type[Exception]) -> None:
    """By the system's number, and by what safetensors says of it; room helps against the one alone."""
    words = os.strerror(number)
    error = OSError(number, words) if kind is OSError else kind(f"I/O error: {words} (os error {number})")
    said = disk_failure(Path("runs/x"), error)
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    assert ("room" in said.rule, "Make room" in said.remedy) == (full, full)
    assert ("written to" in said.rule, "writable" in said.remedy) == (not full, not full)
    assert "--resume" in said.remedy
    assert disk_failure(Path("x"), error, "or wait").remedy.endswith(", or wait.")
