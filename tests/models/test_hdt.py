"""The hierarchy without Mamba against numbers of its authors' code, in other sizes than the published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm.data.contexts import ContextSampler
from dmm.data.trajectories import Trajectories
from dmm.errors import InputError
from dmm.experiments.parity import gradient_shares
from dmm.models.entry import Facts
from dmm.models.hdt import HDTConfig, HierarchicalTransformer, TransformerPlanner
from dmm.models.hierarchy import Groups
from dmm.models.official import from_official
from dmm.models.registry import MODELS, read_changes
from dmm.training import TrainConfig
from tests.conftest import MakeTrajectories
from tests.models.test_dmh import near, replayed

GOLDEN = Path(__file__).parents[1] / "golden" / "in_context_hdt.npz"


class Golden:
    """What the authors' planner computed, and ours with their weights."""

    def __init__(self) -> None:
        with np.load(GOLDEN) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        self.planner = from_official("hdt", GOLDEN, json.loads(str(self.arrays["config"])))
        self.real = self.tensor("attention_mask").bool()
        done = self.tensor("done")[..., None]
        self.groups = Groups(
            self.tensor("returns_to_go"),
            self.tensor("states"),
            self.tensor("h_r"),
            (done == 1).float(),
            self.real,
            self.tensor("timesteps").long(),
        )

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"inputs/{name}"])


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def test_plans_are_theirs(golden: Golden) -> None:
    found = golden.planner(golden.groups, golden.tensor("z_distributions"))
    near(found[golden.real], torch.from_numpy(golden.arrays["outputs/z_distribution"])[golden.real])


def test_gradients_are_theirs(golden: Golden) -> None:
    found = golden.planner(golden.groups, golden.tensor("z_distributions"))
    loss = (found - golden.tensor("target"))[golden.real].square().mean()
    assert loss.item() == pytest.approx(float(golden.arrays["loss"]), rel=1e-5)
    arrays = {key: torch.from_numpy(golden.arrays[key]) for key in golden.arrays if key.startswith("grads/")}
    shares = gradient_shares("hdt", golden.planner, loss, arrays)
    assert len(shares) == 3 and max(shares.values()) < 1e-4


def test_a_plan_of_the_first_groups_is_theirs(golden: Golden) -> None:
    """Padded to the whole context, as their `get_action` does."""
    row, plans = int(golden.arrays["outputs/get_action_first4_of_row"].item()), golden.tensor("z_distributions")
    padding = golden.real.shape[1] - 4
    first = int(golden.real[row].int().argmax()) if not golden.real[row].all() else 0

    def moved(field: Tensor) -> Tensor:
        some = field[row : row + 1, first : first + 4]
        return torch.cat([some.new_zeros(1, padding, *some.shape[2:]), some], dim=1)

    found = golden.planner(Groups(*map(moved, golden.groups)), moved(plans))
    near(found[0, -1], torch.from_numpy(golden.arrays["outputs/get_action"]))


def test_plans_are_given_where_they_have_a_token(golden: Golden) -> None:
    with pytest.raises(InputError, match=r"^plans: got none, allowed is those of all groups, \(b, K, 2 z\)"):
        golden.planner(golden.groups)
    planner = TransformerPlanner(HDTConfig(state_size=5, action_size=3, groups=6, width=8))
    with pytest.raises(InputError, match=r"^plans: got \(3, 6, 10\), allowed is none"):
        planner(golden.groups, golden.tensor("z_distributions"))


SMALL: dict[str, Any] = {"groups": 9, "interval": 3, "width": 16, "layers": 2, "plan_layers": 2, "max_timestep": 20}


def made(**changes: Any) -> HierarchicalTransformer:
    torch.manual_seed(1)
    return HierarchicalTransformer(HDTConfig(**({"state_size": 4, "action_size": 2} | SMALL | changes))).eval()


@pytest.fixture
def data(make_trajectories: MakeTrajectories) -> Trajectories:
    return make_trajectories(lengths=(7, 5, 9, 6))


@pytest.mark.parametrize("tokens", ["four", "three"])
def test_acting_over_episodes_is_the_forward(data: Trajectories, tokens: str) -> None:
    policy = made(window="group", tokens=tokens, groups=10)
    policy.set_state_moments(*map(torch.from_numpy, data.state_moments()))
    contexts = ContextSampler(data, 10, interval=3, goals="formula").contexts_of([[1, 0, 3, 2]])
    assert int((-(-data.lengths // 3)).sum()) == 10
    expected = policy(contexts)[0][contexts.mask[0]].detach()
    torch.testing.assert_close(replayed(policy, data, contexts), expected, rtol=1e-4, atol=1e-5)


def test_the_recurrence_is_the_forward_of_a_padded_and_of_a_cut_context(data: Trajectories) -> None:
    policy = made()
    contexts = ContextSampler(data, 9, interval=3, goals="formula").contexts_of([[-1, 0, 1, 2], [3, 2, 0, 1]])
    groups = policy.group(contexts)
    assert groups.number[1, 0] == 1  # one group of the first episode is cut off
    found, expected = policy.planner.recurrence(groups), policy.plans(contexts)
    torch.testing.assert_close(found[groups.real], expected[groups.real], rtol=1e-4, atol=1e-6)


SIZES = {("Hopper-v5", 11, 3): 637_218, ("Walker2d-v5", 17, 6): 641_844, ("AntMaze_UMaze-v5", 29, 8): 651_096}
SIZES |= {("FrankaKitchen-v1", 60, 9): 674_997}


@pytest.mark.parametrize(("data_of", "count"), SIZES.items())
def test_published_sizes_are_theirs(data_of: tuple[str, int, int], count: int) -> None:
    """Of the planner with its plan tokens, but for the weights that nothing reads."""
    env_id, s, a = data_of
    facts = Facts(state_size=s, action_size=a, env_id=env_id)
    changes, _ = read_changes({"sizes": "published", "groups": 200, "interval": 20}, MODELS["hdt"], TrainConfig, facts)
    planner = TransformerPlanner(MODELS["hdt"].config_for(facts, changes), plan_tokens=True)
    unused = 129 * s + 129 + 128  # heads for states and returns; one word
    assert sum(weight.numel() for weight in planner.parameters()) == count - unused


def test_bad_numbers() -> None:
    with pytest.raises(InputError, match=r"^numbers: got -1"):
        made(numbers=-1)
