"""The fused branches against the modules that they stand for: outputs, gradients, and who is served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dmm import DecisionMetaMamba, DMMConfig, cpp
from dmm.data.windows import Windows
from dmm.errors import InputError
from dmm.fused import LONGEST, branch, branches, kernel
from dmm.layers.local import DenseSequenceMixer
from dmm.layers.mamba import MambaBlock
from dmm.models.frame import TokenPolicy
from dmm.models.mamba import MambaConfig, MambaPolicy
from dmm.policy import action_loss
from dmm.training.stacking import stack

needs_kernel = pytest.mark.skipif(cpp.compiler() is None, reason="no C++ compiler here")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}
"""Of the largest entry. Sums of some thousand terms are taken in another order."""


def random_windows(config: Any, b: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Windows:
    """Windows of which every second begins with padding."""
    draw, k = torch.Generator().manual_seed(seed), config.context
    shape = (b, k)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[::2, : k // 2] = False
    return Windows(
        torch.rand(*shape, 1, generator=draw, dtype=dtype) * mask[..., None],
        torch.randn(*shape, config.state_size, generator=draw, dtype=dtype) * mask[..., None],
        torch.rand(*shape, config.action_size, generator=draw, dtype=dtype) * mask[..., None],
        torch.arange(k).repeat(b, 1),
        mask,
    )


def make(config: Any, dtype: torch.dtype = torch.float32) -> TokenPolicy:
    """A policy whose weights, biases and gains are all drawn, none left at a start that hides a mistake."""
    policy = DecisionMetaMamba(config) if isinstance(config, DMMConfig) else MambaPolicy(config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            step = "A_log" in name or "dt_proj.bias" in name
            weight += (0.3 if step else 0.1) * torch.randn(weight.shape, generator=draw)
    return policy.to(dtype).train()


def outcome(policy: TokenPolicy, windows: Windows, choice: Any) -> dict[str, Tensor]:
    """The actions and all gradients, dropout drawn from one seed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        with branches(choice):
            actions = policy(windows)
            loss = action_loss(actions, windows)
            trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
            found = torch.autograd.grad(loss, list(trained.values()))
    return {"actions": actions.detach(), **dict(zip(trained, found, strict=True))}


def assert_same(config: Any, dtype: torch.dtype, b: int = 5) -> None:
    policy, windows = make(config, dtype), random_windows(config, b, dtype=dtype)
    expected, found = outcome(policy, windows, "plain"), outcome(policy, windows, "fused")
    for name, value in expected.items():
        assert found[name].shape == value.shape
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=TOLERANCE[dtype] * float(value.abs().max()), msg=name
        )


SIZES = {"state_size": 5, "action_size": 2, "width": 16, "layers": 2, "context": 4}
SWITCHES: dict[str, dict[str, Any]] = {
    "default": {},
    "hopper": {"width": 64, "layers": 3, "context": 8},
    "odd width": {"width": 17},
    "few channels": {"width": 5, "ssm_state": 1},
    "expanded": {"expand": 2},
    "states beside tiles": {"ssm_state": 7},
    "many states": {"ssm_state": 33},
    "no dropout": {"dropout": 0.0},
    "long": {"context": 20},
    "normalised residual": {"residual": "normalized"},
    "shared norms": {"share_norms": True},
    "shared DSM": {"share_dsm": True},
    "frozen DSM": {"train_dsm": False},
    "affine": {"dsm_bias": True},
    "released padding": {"padding": "released"},
    "wiped steps": {"step_init": "wiped"},
    "uniform A": {"a_init": "uniform"},
}


@needs_kernel
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
def test_every_switch_gives_the_modules_outputs_and_gradients(changes: dict[str, Any], dtype: torch.dtype) -> None:
    assert_same(DMMConfig(**SIZES | changes), dtype)


@needs_kernel
@pytest.mark.parametrize("window", range(1, 13))
def test_every_window_gives_the_modules_outputs_and_gradients(window: int) -> None:
    assert_same(DMMConfig(**SIZES, window=window), torch.float64)


@needs_kernel
@pytest.mark.parametrize("make_config", [DMMConfig.paper, DMMConfig.released])
def test_the_two_readings(make_config: Callable[..., DMMConfig]) -> None:
    assert_same(make_config(5, 2, layers=2, width=32), torch.float64)


@needs_kernel
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("taps", [1, 4, 5])
@pytest.mark.parametrize("width", [16, 13])
def test_stock_mamba_with_its_convolution(width: int, taps: int, dtype: torch.dtype) -> None:
    assert_same(MambaConfig(**SIZES | {"width": width, "conv_width": taps}), dtype)


@needs_kernel
@pytest.mark.parametrize("b", [1, 2, 64])
def test_any_batch(b: int) -> None:
    assert_same(DMMConfig(**SIZES), torch.float64, b)


@needs_kernel
def test_the_same_bits_again_and_on_any_number_of_threads() -> None:
    config = DMMConfig(**SIZES | {"width": 64})
    policy, windows, threads = make(config), random_windows(config, 9), torch.get_num_threads()
    first = outcome(policy, windows, "fused")
    mixer, norm = policy.blocks[0].global_mixer, policy.blocks[0].global_norm
    x = torch.randn(3, 12, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            run = branch(norm, mixer, x, False)
            assert run is not None
            found.append(torch.autograd.grad(run().square().sum(), x)[0])
    finally:
        torch.set_num_threads(threads)
    again = outcome(policy, windows, "fused")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(found[1], found[0]) and torch.equal(found[2], found[0])


def branch_pair(kind: str) -> tuple[nn.LayerNorm, nn.Module, Tensor]:
    torch.manual_seed(0)
    mixer = DenseSequenceMixer(6, 3, bias=True) if kind == "dense" else MambaBlock(6, state_size=3, expand=2)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    return nn.LayerNorm(6).double(), mixer.double(), x


@needs_kernel
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("kind", ["dense", "mamba"])
def test_second_gradients_are_those_of_the_modules(kind: str, normalized: bool) -> None:
    with torch.random.fork_rng():
        norm, mixer, x = branch_pair(kind)
    if isinstance(mixer, MambaBlock):
        mixer.backend = "sequential"  # which autograd can differentiate twice; fused branches want `auto`
    weights = [x, *norm.parameters(), *mixer.parameters()]

    def penalty(y: Tensor) -> list[Tensor]:
        first = torch.autograd.grad(y.square().sum(), weights, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), weights))

    normed = norm(x)
    if isinstance(mixer, DenseSequenceMixer):
        mixed = mixer.mix(F.pad(normed, (0, 0, mixer.window - 1, 0)).unfold(1, mixer.window, 1))
    else:
        mixed = mixer(normed)
    expected = penalty((normed if normalized else x) + mixed)
    if isinstance(mixer, MambaBlock):
        mixer.backend = "auto"
    run = branch(norm, mixer, x, normalized)
    assert run is not None
    for found, wanted in zip(penalty(run()), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@needs_kernel
@pytest.mark.parametrize("kind", ["dense", "mamba"])
def test_gradients_are_asked_for_one_by_one(kind: str) -> None:
    with torch.random.fork_rng():
        norm, mixer, x = branch_pair(kind)
    weights = [x, *norm.parameters(), *mixer.parameters()]
    run = branch(norm, mixer, x, False)
    assert run is not None
    together = torch.autograd.grad(run().square().sum(), weights)
    for weight, expected in zip(weights, together, strict=True):
        for other in weights:
            other.requires_grad_(other is weight)
        assert torch.equal(torch.autograd.grad(run().square().sum(), weight)[0], expected)


@needs_kernel
def test_rows_that_do_not_lie_together_are_taken_as_they_are() -> None:
    with torch.random.fork_rng():
        norm, mixer, x = branch_pair("mamba")
    turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    results = []
    for tokens in (x, turned):
        run = branch(norm, mixer, tokens, False)
        assert run is not None
        results.append(torch.autograd.grad(run().square().sum(), tokens)[0])
    assert torch.equal(*results)


@needs_kernel
def test_numbers_that_are_none_come_through() -> None:
    for kind in ("dense", "mamba"):
        with torch.random.fork_rng():
            norm, mixer, x = branch_pair(kind)
        x = x.detach().clone()
        x[0, 2, 3] = float("nan")
        run = branch(norm, mixer, x.requires_grad_(), False)
        assert run is not None
        y = run()
        assert y[0, 2:].isnan().any(-1).all() and not y[0, :2].isnan().any() and not y[1].isnan().any()
        assert torch.autograd.grad(y.sum(), next(mixer.parameters()))[0].isnan().any()


def refusals() -> dict[str, Callable[[nn.LayerNorm, nn.Module, Tensor], Tensor | None]]:
    def hooked(norm: nn.LayerNorm, mixer: nn.Module, x: Tensor) -> None:
        next(mixer.children()).register_forward_hook(lambda *_: None)

    def parametrized(norm: nn.LayerNorm, mixer: nn.Module, x: Tensor) -> None:
        parametrize.register_parametrization(next(mixer.children()), "weight", nn.Identity())

    return {
        "evaluation": lambda norm, mixer, x: mixer.eval() and None,
        "hooks": hooked,
        "other layers": parametrized,
        "half precision": lambda norm, mixer, x: x.bfloat16(),
        "another dtype": lambda norm, mixer, x: x.float(),
        "no tokens": lambda norm, mixer, x: x[:, :0],
        "no rows": lambda norm, mixer, x: x[:0],
        "too long": lambda norm, mixer, x: x[:, :1].expand(-1, LONGEST + 1, -1),
        "another width": lambda norm, mixer, x: x[..., :4],
    }


@needs_kernel
@pytest.mark.parametrize("kind", ["dense", "mamba"])
@pytest.mark.parametrize("why", refusals())
def test_all_else_is_left_to_the_modules(why: str, kind: str) -> None:
    with torch.random.fork_rng():
        norm, mixer, x = branch_pair(kind)
    changed = refusals()[why](norm, mixer, x)
    x = x if changed is None else changed
    assert branch(norm, mixer, x, False) is None
    with branches("fused"), pytest.raises(InputError, match="branches: got 'fused', allowed here is plain: "):
        branch(norm, mixer, x, False)


@needs_kernel
def test_a_chosen_scan_is_kept() -> None:
    with torch.random.fork_rng():
        norm, mixer, x = branch_pair("mamba")
    assert isinstance(mixer, MambaBlock)
    mixer.backend = "cpp"
    assert branch(norm, mixer, x, False) is None


@needs_kernel
def test_evaluation_with_gradients_takes_the_modules() -> None:
    with torch.random.fork_rng():
        norm, mixer, x = branch_pair("dense")
    assert branch(norm, mixer.eval(), x, False) is None


def test_without_a_compiler_the_modules_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        norm, mixer, x = branch_pair("dense")
    monkeypatch.setattr(kernel, "status", lambda: cpp.Status(None, "no C++ compiler found"))
    assert branch(norm, mixer, x, False) is None
    with branches("fused"), pytest.raises(InputError, match="no C\\+\\+ compiler found"):
        branch(norm, mixer, x, False)


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(InputError, match="branches: got 'quick', allowed are auto, plain, fused"), branches("quick"):  # type: ignore[arg-type]
        pass


@needs_kernel
def test_training_on_a_cpu_is_fused_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = kernel.call

    def counted(name: str, *arguments: Any) -> None:
        calls.append(name)
        real(name, *arguments)

    for module in ("dense", "mamba"):
        monkeypatch.setattr(f"dmm.fused.{module}.call", counted)
    config = DMMConfig(**SIZES)
    outcome(make(config), random_windows(config, 2), "auto")
    kinds = ("dense", "dense_backward", "mamba", "mamba_backward")
    assert [calls.count(kind) for kind in kinds] == [config.layers] * 4


def test_stacked_seeds_take_the_modules() -> None:
    config = DMMConfig(**SIZES)
    policies = [make(config) for _ in range(2)]
    together = stack(policies, [torch.Generator().manual_seed(seed) for seed in range(2)]).train()
    windows = random_windows(config, 4)
    with branches("fused"), pytest.raises(InputError, match="allowed here is plain"):
        together(windows)
    assert together(windows).shape == (4, config.context, config.action_size)
