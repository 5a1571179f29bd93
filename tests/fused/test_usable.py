"""Where kernels of ours are used: on GPUs that are new enough, with a compiler that is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from homodistil import fused

triton = pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def _unknown() -> Iterator[None]:
    fused.usable.cache_clear()
    yield
    fused.usable.cache_clear()


@pytest.mark.parametrize(
    ("version", "chip", "used"),
    [("3.2.0", (9, 0), False), ("3.3.0", (9, 0), True), ("3.10.1+git4a6b", (8, 0), True), ("3.9.0", (7, 5), False)],
)
def test_kernels_are_for_gpus_and_compilers_that_are_new_enough(
    version: str, chip: tuple[int, int], used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others compute by the plain formulas."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: chip)
    monkeypatch.setattr(triton, "__version__", version)
    assert fused.usable() is used
