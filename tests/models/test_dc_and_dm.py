"""What reimplementers of Decision ConvFormer and Ota's Decision Mamba get wrong, and what both share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from dmm.data.windows import Windows
from dmm.errors import InputError
from dmm.fused import branches
from dmm.inspection import activations, gate_shares, gradient_norms, modality_norms
from dmm.models.dc import DCConfig
from dmm.models.dm import DMConfig
from dmm.models.dt import DecisionTransformer, DTConfig
from dmm.models.frame import TokenPolicy
from dmm.models.registry import MODELS
from dmm.training.stacking import stack

SMALL: dict[str, Any] = {"width": 8, "layers": 2, "context": 5, "rtg_scale": 1.0, "max_timestep": 20}
NAMES = ("dc", "dc-no-actions", "dm")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def small(name: str, **changes: Any) -> TokenPolicy:
    """With strong weights everywhere, so that every dependence shows."""
    policy = MODELS[name].policy(MODELS[name].make_config(4, 2, "", **(SMALL | changes)))
    assert isinstance(policy, TokenPolicy)
    with torch.no_grad():
        for key, weight in policy.named_parameters():
            if "A_log" not in key:
                nn.init.normal_(weight, std=0.4)
    return policy.double().eval()


def random_windows(padded: tuple[int, ...] = (0, 0, 2), k: int = 5, dtype: torch.dtype = torch.float64) -> Windows:
    mask = torch.arange(k) >= torch.tensor(padded)[:, None]
    real, b = mask[..., None], len(padded)
    return Windows(
        returns_to_go=torch.rand(b, k, 1, dtype=dtype) * real,
        states=torch.randn(b, k, 4, dtype=dtype) * real,
        actions=torch.rand(b, k, 2, dtype=dtype) * real,
        timesteps=(torch.arange(k) + 3) * mask,
        mask=mask,
    )


def moved(policy: TokenPolicy, windows: Windows, field: str, t: int) -> torch.Tensor:
    """By how much the actions of the first window change with a field of step `t`: `(k,)`."""
    changed = getattr(windows, field).clone()
    changed[:, t] += 1
    return (policy(dataclasses.replace(windows, **{field: changed})) - policy(windows))[0].abs().amax(-1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [0, 3])
def test_an_action_sees_its_own_state_and_return_and_the_past(name: str, t: int) -> None:
    policy, windows = small(name, layers=3), random_windows()
    for field, first in (("returns_to_go", t), ("states", t), ("actions", t + 1), ("timesteps", t)):
        reached = moved(policy, windows, field, t)
        assert not reached[:first].any()
        if name == "dc-no-actions" and field == "actions":
            assert not reached.any()
        else:
            assert bool((reached[first:] > 0).all()), field


@pytest.mark.parametrize(("window", "layers"), [(6, 2), (4, 1), (2, 3)])
def test_a_convformer_reaches_so_many_tokens_and_no_more(window: int, layers: int) -> None:
    policy = small("dc", window=window, layers=layers)
    assert policy.reach == layers * (window - 1) + 1  # type: ignore[union-attr]
    reached = (gradient_norms(policy, random_windows((0, 0))) > 0)[: 3 * 5 - 1]
    expected = torch.arange(3 * 5 - 1) >= 3 * 5 - 1 - policy.reach  # type: ignore[operator, union-attr]
    assert torch.equal(reached, expected)


def test_longer_windows_than_the_reach_give_the_same_action() -> None:
    policy, windows = small("dc", window=3, context=9), random_windows((0, 0), k=9)
    last = {field.name: getattr(windows, field.name)[:, 3:] for field in dataclasses.fields(windows)}
    torch.testing.assert_close(policy(Windows(**last))[:, -1], policy(windows)[:, -1])


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_padding_matters_since_nothing_masks_it(name: str) -> None:
    policy, windows = small(name), random_windows((2,))
    released = small(name, padding="released", dropout=0.0)
    released.load_state_dict(policy.state_dict())
    policy.set_state_moments(torch.full((4,), 2.0), torch.ones(4))
    released.set_state_moments(torch.full((4,), 2.0), torch.ones(4))
    assert torch.equal(released(windows), policy(windows))  # zeros in evaluation
    difference = (released.train()(windows) - policy(windows))[windows.mask]
    assert float(difference.abs().max()) > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("choice", ["plain", "auto"])
def test_training_leaves_out_what_no_action_depends_on_and_nothing_else(name: str, choice: Any) -> None:
    policy, windows = small(name, dropout=0.0), random_windows()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        policy.to(dtype)
        given = Windows(
            *(x.to(dtype) for x in (windows.returns_to_go, windows.states, windows.actions)),
            windows.timesteps,
            windows.mask,
        )
        outcomes = []
        for training in (False, True):
            with branches(choice):
                (loss,) = policy.train(training).loss(given).values()
                outcomes.append([loss, *torch.autograd.grad(loss, list(policy.parameters()))])
        for (key, _), mine, theirs in zip(
            [("loss", 0), *policy.named_parameters()], outcomes[1], outcomes[0], strict=True
        ):
            torch.testing.assert_close(
                mine, theirs, rtol=0, atol=tolerance * (1 + float(theirs.detach().abs().max())), msg=key
            )


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_has_the_losses_and_gradients_of_its_policies(name: str) -> None:
    policies = [small(name, dropout=0.3).train() for _ in range(2)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    together = stack(policies, generators).train()
    windows = random_windows()
    both = Windows(*(torch.stack([getattr(windows, f.name)] * 2) for f in dataclasses.fields(windows)))
    found = together.loss(both)["action"]
    gradients = torch.autograd.grad(found.sum(), list(together.parameters()))
    for i, policy in enumerate(policies):
        torch.manual_seed(i)
        (loss,) = policy.loss(windows).values()
        torch.testing.assert_close(found[i], loss)
        for mine, theirs in zip(gradients, torch.autograd.grad(loss, list(policy.parameters())), strict=True):
            torch.testing.assert_close(mine[i], theirs)


@pytest.mark.parametrize("name", ["dt", *NAMES])
def test_published_start(name: str) -> None:
    config = MODELS[name].make_config(4, 2, "", width=64, start="published")
    policy = MODELS[name].policy(config)
    assert isinstance(policy, TokenPolicy) and policy.embed_timestep is not None
    assert policy.embed_timestep.weight.std().item() == pytest.approx(1, rel=0.02)
    for layer in (*policy.embeddings().values(), policy.head):
        limit = layer.in_features**-0.5
        for weight in layer.parameters():
            assert 0.6 * limit < weight.abs().max() <= limit
    for part in (module for block in policy.blocks for module in block.modules() if isinstance(module, nn.Linear)):
        assert part.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert part.bias is None or not part.bias.any()


def test_each_models_own_start() -> None:
    starts = {name: MODELS[name].make_config(4, 2, "").start for name in ("dt", *NAMES)}
    assert starts == {"dt": "frame", "dc": "published", "dc-no-actions": "published", "dm": "published"}
    policy = MODELS["dm"].policy(MODELS["dm"].make_config(4, 2, ""))
    assert not policy.blocks[0].mamba.dt_proj.bias.any()  # type: ignore[index, union-attr]


@pytest.mark.parametrize(("name", "tokens"), [("dc", 15), ("dc-no-actions", 10)])
def test_inspection_counts_the_policys_own_tokens(name: str, tokens: int) -> None:
    policy, windows = small(name), random_windows((0, 0))
    stages = activations(policy, windows)
    assert all(x.shape == (2, tokens, 8) for x in stages.values()) and "layer 2, convolution" in stages
    assert list(modality_norms(stages["embedding"], policy.TOKENS)) == list(policy.TOKENS)
    assert gate_shares(policy, windows) == {} and list(gate_shares(small("dm"), windows)) == ["layer 1", "layer 2"]


def test_mix_of_ones_own_is_used_in_training_too() -> None:
    class Other(type(small("dc"))):  # type: ignore[misc]
        def mix(self, x: torch.Tensor, windows: Windows) -> torch.Tensor:
            return x

    policy = Other(DCConfig(state_size=4, action_size=2, **(SMALL | {"dropout": 0.0}))).double()
    windows = random_windows()
    torch.testing.assert_close(policy.train()(windows), policy.eval()(windows))


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (DCConfig, "window", 0),
        (DCConfig, "start", "random"),
        (DCConfig, "max_timestep", 0),
        (DMConfig, "expand", 0),
        (DMConfig, "step_init", "zero"),
        (DTConfig, "start", "random"),
    ],
)
def test_wrong_field_is_named(config: type, field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{field}: got .*, allowed"):
        config(state_size=4, action_size=2, **{field: value})


def test_the_transformers_frame_start_is_what_it_was() -> None:
    torch.manual_seed(0)
    policy = DecisionTransformer(DTConfig(state_size=4, action_size=2))
    assert list(policy.state_dict())[-1] == "embed_timestep.weight"
    assert policy.embed_timestep is not None
    assert policy.embed_timestep.weight.std().item() == pytest.approx(0.02, rel=0.02)
