"""XᵀX of what layers read: exact, however it is computed."""

from __future__ import annotations

import pytest
import torch

from homodistil.compress import gram as module
from homodistil.compress.gram import gram


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 5, 255, 256, 257, 700, 1536])
def test_a_gram_matrix_is_the_product_in_float32(width: int, dtype: torch.dtype) -> None:
    x = (3 + torch.randn(300, width, generator=torch.Generator().manual_seed(width))).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = gram(x)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), x.double().T @ x.double(), rtol=1e-5, atol=1e-5)


def test_without_rows_a_gram_matrix_is_zero() -> None:
    assert torch.equal(gram(torch.empty(0, 600, dtype=torch.bfloat16)), torch.zeros(600, 600))


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_how_products_are_made_is_as_before_afterwards(device: str) -> None:
    """Also where something fails meanwhile, as memory may run out."""
    backends = [getattr(torch.backends.mkldnn, "matmul", None), torch.backends.cuda.matmul]
    before = [getattr(backend, "fp32_precision", None) for backend in backends]
    with pytest.raises(MemoryError), module._by_units_of_bf16(torch.device(device)):
        raise MemoryError
    assert [getattr(backend, "fp32_precision", None) for backend in backends] == before
    assert torch.get_float32_matmul_precision() == "highest"
