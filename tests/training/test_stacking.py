from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import InputError
from dmm.models.frame import TokenPolicyConfig
from dmm.models.registry import MODELS
from dmm.policy import Policy
from dmm.training.stacking import stack

SEEDS = (3, 4, 5)
SIZES: dict[str, Any] = {"width": 8, "layers": 2, "context": 4, "dropout": 0.3}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((model, {}) for model, entry in MODELS.items() if issubclass(entry.config, TokenPolicyConfig)),
    ("dt", {"heads": 2, "max_timestep": 3}),
    ("dmm", {"local_mixer": "depthwise", "dsm_bias": True}),
    ("dmm", {"local_mixer": "depthwise"}),
    ("dmm", {"local_mixer": "multimodal"}),
    ("dmm", {"share_dsm": True, "share_norms": True}),
    ("dmm", {"share_dsm": True, "train_dsm": False, "a_init": "uniform"}),
    ("dm-multigrained", {"groups": "previous", "embedding": "linear"}),
    ("starformer", {"kind": "reward"}),
    ("edt", {}),
    ("dmm", {"activation": "gelu", "skip": False}),
    ("dmm", {"global_mixer": "mamba2", "head_size": 4}),
    ("dmm", {"global_mixer": "attention", "head_size": 4}),
    ("dmm", {"global_mixer": "s4", "ssm_state": 4}),
]


def policies(model: str, seeds: Sequence[int] = SEEDS, **changes: Any) -> list[Policy]:
    entry, made = MODELS[model], []
    with torch.random.fork_rng():
        for seed in seeds:
            torch.manual_seed(seed)
            made.append(entry.policy(entry.make_config(4, 2, "", **SIZES | changes)).double())
            for weight in made[-1].parameters():  # norms and biases start alike, and would not tell seeds apart
                weight.data += 0.1 * torch.randn_like(weight)
    return made


def generators(seeds: Sequence[int] = SEEDS) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def windows_for(trajectories: Trajectories, seeds: int = len(SEEDS), batch: Any = Windows) -> Windows:
    """Six windows for each seed, padded ones among them, in float64: `(S, 6, k, ...)`."""
    sampler = WindowSampler(trajectories, SIZES["context"], generator=torch.Generator().manual_seed(1), batch=batch)
    drawn = sampler.gather(sampler.draw(seeds, 6, sampler.generator))
    assert not drawn.mask.all()
    return drawn.map(lambda field: field.double() if field.is_floating_point() else field)


def part(windows: Windows, seed: int) -> Windows:
    return windows.map(lambda field: field[seed])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("model", "changes"), CASES, ids=str)
def test_outputs_gradients_and_dropout_are_those_of_each_policy_alone(
    trajectories: Trajectories, model: str, changes: dict[str, Any], training: bool
) -> None:
    alone, drawing = policies(model, **changes), generators()
    windows = windows_for(trajectories, batch=alone[0].batch)
    together = stack(alone, drawing).train(training)
    joint = together(windows.merged())
    joint.square().sum().backward()
    weights = dict(together.named_parameters())
    with torch.random.fork_rng():
        for place, (seed, policy) in enumerate(zip(SEEDS, alone, strict=True)):
            torch.manual_seed(seed)
            expected = policy.train(training)(part(windows, place))
            expected.square().sum().backward()
            torch.testing.assert_close(joint[6 * place : 6 * place + 6], expected, rtol=1e-12, atol=1e-13)
            assert torch.equal(drawing[place].get_state(), torch.get_rng_state())
            assert list(weights) == [name for name, _ in policy.named_parameters()]
            for name, weight in policy.named_parameters():
                ours = weights[name]
                assert torch.equal(ours[place], weight) and ours.requires_grad == weight.requires_grad
                assert (weight.grad is None) == (ours.grad is None)
                if weight.grad is not None:  # heads that only the loss reads have none
                    gradient = cast(Tensor, ours.grad)[place]
                    torch.testing.assert_close(gradient, weight.grad, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("seeds", [1, 2])
def test_any_number_of_policies(trajectories: Trajectories, seeds: int) -> None:
    alone, windows = policies("dmm", range(seeds)), windows_for(trajectories, seeds)
    joint = stack(alone, generators(range(seeds))).eval()(windows.merged())
    expected = torch.cat([policy.eval()(part(windows, place)) for place, policy in enumerate(alone)])
    torch.testing.assert_close(joint, expected, rtol=1e-12, atol=1e-13)


def test_policies_are_left_as_they_are() -> None:
    alone = policies("dmm")
    before = [{name: tensor.clone() for name, tensor in policy.state_dict().items()} for policy in alone]
    together = stack(alone, generators())
    with torch.no_grad():
        for weight in together.parameters():
            weight.add_(1)
    for policy, state in zip(alone, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in policy.state_dict().items())
        assert type(policy.head) is nn.Linear and policy.dropout.generators is None  # type: ignore[union-attr]


def test_layers_that_are_shared_stay_shared() -> None:
    together: Any = stack(policies("dmm", share_dsm=True, share_norms=True), generators())
    first, second = together.blocks
    assert first.local_mixer is second.local_mixer and first.global_norm is second.global_norm
    assert first.global_mixer is not second.global_mixer
    assert sum(w.numel() for w in together.parameters()) == 3 * sum(
        w.numel() for w in policies("dmm", [0], share_dsm=True, share_norms=True)[0].parameters()
    )


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize("layer", [Scaled, lambda: nn.Dropout(0.1), lambda: nn.GRU(2, 2)])
def test_layers_that_are_not_known_are_named(layer: Any) -> None:
    alone = policies("dmm", (0, 1))
    for policy in alone:
        policy.extra = nn.Sequential(nn.ReLU(), layer())
    kind = type(layer()).__name__
    with pytest.raises(InputError, match=rf"^policies: got a layer {kind}, allowed are Linear, .*MambaBlock"):
        stack(alone, generators((0, 1)))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"width": 16}, "policies of one config"),
        ({"rtg_scale": 7.0}, "policies of one config"),
        ({"layers": 3}, "policies of one config"),
        ({"local_mixer": "multimodal"}, "policies of one config"),
    ],
)
def test_policies_of_several_configs_are_refused(others: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^policies: got .*{message}"):
        stack([*policies("dmm", [0]), *policies("dmm", [0], **others)], generators((0, 1)))


def test_policies_with_several_moments_are_refused() -> None:
    alone = policies("dmm", (0, 1))
    alone[1].set_state_moments(torch.ones(4), torch.ones(4))
    with pytest.raises(InputError, match=r"^policies: got several values of 'state_mean', allowed is one"):
        stack(alone, generators((0, 1)))


@pytest.mark.parametrize(("seeds", "drawing"), [((), ()), ((0,), ()), ((0,), (0, 1))])
def test_one_generator_for_each_policy(seeds: tuple[int, ...], drawing: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=rf"^generators: got {len(drawing)} for {len(seeds)} policies"):
        stack(policies("dmm", seeds), generators(drawing))


@pytest.mark.parametrize("model", ["dmm", "mamba"])
def test_gradients_of_gradients_equal_those_of_separate_policies(model: str, trajectories: Trajectories) -> None:
    separate = policies(model, width=4, layers=1, dropout=0.0)
    together, windows = stack(separate, generators()), windows_for(trajectories)
    whole = Windows(*(getattr(windows, field.name).flatten(0, 1) for field in dataclasses.fields(windows)))

    def penalty(policy: Policy, windows: Windows) -> dict[str, Tensor]:
        """The gradients of the squared size of a gradient."""
        weights = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
        loss = policy(windows).pow(2).sum()
        first = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), list(weights.values()))
        return dict(zip(weights, second, strict=True))

    stacked = penalty(together, whole)
    for i, policy in enumerate(separate):
        for name, expected in penalty(policy, part(windows, i)).items():
            torch.testing.assert_close(stacked[name][i], expected)
