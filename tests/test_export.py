"""A policy leaves Python: `torch.export` takes each of them, and the program gives the same actions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows
from dmm.errors import InputError
from dmm.layers.mamba import MambaBlock
from dmm.models.frame import TokenPolicyConfig
from dmm.models.registry import MODELS
from dmm.policy import Policy
from dmm.scan import scan_backends
from dmm.training import load_run, train

CONTEXT = 3
SIZES: dict[str, Any] = {"context": CONTEXT, "width": 8, "layers": 1}


class Flat(nn.Module):
    """A policy that takes the fields of its windows one by one, as a program does."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy

    def forward(self, *fields: Tensor) -> Tensor:
        return cast(Tensor, self.policy(Windows(*fields)))


def fields(batch: int, context: int = CONTEXT) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, context, *shape, generator=generator)

    mask = torch.arange(context) >= torch.randint(0, context, (batch, 1), generator=generator)
    return 100 * normal(1), normal(4), normal(2).tanh(), torch.arange(context).repeat(batch, 1), mask


def exported(policy: Policy, context: int = CONTEXT) -> nn.Module:
    rows = {0: torch.export.Dim("rows", min=1, max=64)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Flat(policy), fields(3, context), dynamic_shapes=((rows,) * 5,))
    return program.module()


def assert_same_actions(policy: Policy, program: nn.Module, context: int = CONTEXT) -> None:
    for batch in (1, 3, 7):
        windows = fields(batch, context)
        with torch.no_grad():
            torch.testing.assert_close(program(*windows), Flat(policy)(*windows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [name for name in MODELS if issubclass(MODELS[name].config, TokenPolicyConfig)])
def test_a_program_gives_the_actions_of_the_policy_for_any_batch(model: str) -> None:
    entry = MODELS[model]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = entry.policy(entry.make_config(4, 2, "", **SIZES)).eval()
    assert_same_actions(policy, exported(policy))


def test_a_policy_of_a_run_can_be_exported(trajectories: Trajectories, tmp_path: Path) -> None:
    train(trajectories, "dmm", steps=2, out=tmp_path / "run", device="cpu", changes=SIZES, progress=False)
    policy = load_run(tmp_path / "run").policy
    assert_same_actions(policy, exported(policy))


def test_a_kernel_asked_for_by_name_is_refused() -> None:
    block = MambaBlock(8, backend="cpp")
    if "cpp" not in scan_backends():
        pytest.skip("no C++ compiler here")
    with pytest.raises(InputError, match=r"^backend: got 'cpp' where torch watches the operations \(export, "):
        torch.export.export(block, (torch.zeros(1, 2, 8),), strict=False)
