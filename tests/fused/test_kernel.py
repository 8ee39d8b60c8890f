"""Building the kernel of the fused branches."""

from __future__ import annotations

import pytest
import torch

from dmm import cpp
from dmm.fused import kernel

pytestmark = pytest.mark.skipif(cpp.compiler() is None, reason="no C++ compiler here")


def test_it_builds_wherever_there_is_a_compiler() -> None:
    assert kernel.status().library is not None, kernel.status().reason


def test_all_that_the_source_includes_is_there() -> None:
    text = "\0".join(cpp._texts(kernel.KERNEL.source, {}).values())
    assert all(f"struct {name}" in text for name in ("Norm", "Matrix", "Outer", "Branch", "Selection", "Traits"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_that_are_too_small_to_tell_are_as_good_as_none(dtype: torch.dtype) -> None:
    """Steps and decays so large that nothing is left of the state, and steps so small that all of it is."""
    from dmm.fused import branch
    from dmm.layers.mamba import MambaBlock

    with torch.random.fork_rng():
        torch.manual_seed(0)
        block, norm = MambaBlock(8, state_size=5, conv_width=None).to(dtype), torch.nn.LayerNorm(8).to(dtype)
    with torch.no_grad():
        block.dt_proj.bias[:4], block.dt_proj.bias[4:8], block.dt_proj.bias[8:] = 600.0, -600.0, 30.0
        block.A_log[:, 2:] = 9.0
    x = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    weights = [x, *norm.parameters(), *block.parameters()]
    run = branch(norm, block, x, False)
    assert run is not None
    y, expected = run(), x + block(norm(x))
    torch.testing.assert_close(y, expected)
    for found, wanted in zip(
        torch.autograd.grad(y.sum(), weights), torch.autograd.grad(expected.sum(), weights), strict=True
    ):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * scale)
