"""The matrix products of a training step, found by watching one."""

from __future__ import annotations

import torch

from dmm.bench.products import matrix_products
from dmm.bench.train import random_trajectories
from dmm.data.windows import WindowSampler
from dmm.models.dmm import DecisionMetaMamba, DMMConfig


class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
    """Multiplications of every product inside, and the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func._schema.name)
        if func._schema.name == "aten::mm":
            (rows, inner), (_, columns) = args[0].shape, args[1].shape
            self.found.append(rows * inner * columns)
        return func(*args, **(kwargs or {}))


def test_all_products_of_a_step_and_nothing_else() -> None:
    config = DMMConfig(state_size=11, action_size=3, context=4, width=16, layers=2, window=3, ssm_state=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = DecisionMetaMamba(config).train()
        sampler = WindowSampler(
            random_trajectories(episodes=2, length=9), config.context, generator=torch.Generator().manual_seed(0)
        )
        compute = matrix_products(policy, sampler.sample(5))
    with Sizes() as sizes:
        compute()
    assert sizes.names == {"aten::mm"}
    rows, steps, d = 5 * 12, 5 * 4, 16
    block = rows * (3 * d * d + d * 2 * d + d * (1 + 8) + 1 * d + d * d)  # DSM, in, x, dt and out projections
    embedding, head = steps * d * (1 + 11 + 3), steps * d * 3
    # each with the gradients of input and weight, but for the embedding's inputs, which have none
    assert sum(sizes.found) == 3 * (2 * block + head) + 2 * embedding
