from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import InputError
from dmm.models.mamba import MambaConfig, MambaLayer, MambaPolicy
from tests.peers import official_block

SMALL: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 5, "width": 8, "layers": 2, "dropout": 0.0}


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def windows(trajectories: Trajectories) -> Windows:
    """The third episode has one step, so some windows are padded."""
    return WindowSampler(trajectories, 5, generator=torch.Generator()).windows_at(torch.tensor([3, 12, 14]))


def test_layer_adds_mamba_ssms_block_to_its_input() -> None:
    layer, theirs, x = MambaLayer(MambaConfig(**SMALL)), official_block(8), torch.randn(2, 9, 8)
    theirs.load_state_dict(layer.mixer.state_dict(), strict=True)
    torch.testing.assert_close(layer(x), x + theirs(F.layer_norm(x, (8,))), rtol=1e-5, atol=1e-6)


def test_config_reaches_the_blocks() -> None:
    policy = MambaPolicy(MambaConfig(**SMALL, expand=3, ssm_state=5, conv_width=2, step_init="wiped"))
    assert len(policy.blocks) == 2
    for block in policy.blocks:
        assert block.mixer.inner == 24 and block.mixer.state_size == 5
        assert block.mixer.conv1d.kernel_size == (2,)
        assert not block.mixer.dt_proj.bias.any()


def test_defaults_are_those_of_mamba_ssm() -> None:
    theirs, ours = official_block(64), MambaPolicy(MambaConfig(state_size=11, action_size=3)).blocks[0].mixer
    assert {name: p.shape for name, p in ours.named_parameters()} == {
        name: p.shape for name, p in theirs.named_parameters()
    }


def test_parameter_count_for_hopper() -> None:
    # d = 64, e = 128, r = 4: frame 1,475 (see test_dmm.py), final norm 128; in each of 3 layers norm 128 and
    # Mamba in 16,384 + conv 640 + x_proj 4,608 + dt 640 + A 2,048 + D 128 + out 8,192 = 32,640
    assert 1_475 + 128 + 3 * (128 + 32_640) == 99_907
    assert MambaPolicy(MambaConfig(state_size=11, action_size=3)).parameter_count() == 99_907


def test_actions_have_the_right_shape_and_range(windows: Windows) -> None:
    actions = MambaPolicy(MambaConfig(**SMALL))(windows)
    assert actions.shape == (3, 5, 2) and bool((actions.abs() <= 1).all())


@pytest.mark.parametrize("t", [1, 4])
def test_an_action_does_not_depend_on_itself_or_what_follows(windows: Windows, t: int) -> None:
    policy = MambaPolicy(MambaConfig(**SMALL)).double()
    for field, first in (("returns_to_go", t), ("states", t), ("actions", t + 1)):
        values = getattr(windows, field).double()
        changed = values.clone()
        changed[:1, t] += 1  # the first window has no padding
        moved = policy(double(windows, field, changed)) - policy(double(windows, field, values))
        reached = moved[0].abs().amax(-1)
        assert bool((reached[:first] == 0).all()) and bool((reached[first:] > 0).all())


def double(windows: Windows, field: str, values: torch.Tensor) -> Windows:
    floats = {name: getattr(windows, name).double() for name in ("returns_to_go", "states", "actions")}
    return dataclasses.replace(windows, **(floats | {field: values}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("step_init", "zero"), ("conv_width", 0), ("expand", 0), ("ssm_state", 0), ("layers", 0), ("padding", "none")],
)
def test_wrong_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{field}: got .*, allowed"):
        MambaPolicy(MambaConfig(**(SMALL | {field: value})))
