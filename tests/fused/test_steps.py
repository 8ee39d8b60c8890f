"""The branches without gradients against the modules: windows, tokens from a state, and acting with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmm import cpp
from dmm.acting import make_actor
from dmm.fused import BranchCell, branch, branches, cell, kernel, newest
from dmm.layers.local import DenseSequenceMixer, DepthwiseConv
from dmm.layers.mamba import MambaBlock, MambaState
from dmm.models.dmm import DecisionMetaMamba, DMMBlock, DMMConfig
from dmm.models.frame import TokenPolicy
from dmm.models.mamba import MambaConfig, MambaPolicy

needs_kernel = pytest.mark.skipif(cpp.compiler() is None, reason="no C++ compiler here")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
WIDTH = 17
MIXERS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: DenseSequenceMixer(WIDTH, 4),
    "dense, affine": lambda: DenseSequenceMixer(WIDTH, 6, bias=True),
    "dense, window of one": lambda: DenseSequenceMixer(WIDTH, 1),
    "mamba": lambda: MambaBlock(WIDTH, state_size=5),
    "mamba without convolution": lambda: MambaBlock(WIDTH, expand=1, conv_width=None),
    "mamba, one tap": lambda: MambaBlock(WIDTH, state_size=33, conv_width=1),
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def pair(kind: str, dtype: torch.dtype) -> tuple[nn.LayerNorm, Any]:
    """A norm and a mixer of which no weight is left at a start that hides a mistake."""
    norm, mixer = nn.LayerNorm(WIDTH), MIXERS[kind]()
    with torch.no_grad():
        for weight in (*norm.parameters(), *mixer.parameters()):
            weight += 0.2 * torch.randn_like(weight)
    return norm.to(dtype).eval(), mixer.to(dtype).eval()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernel's functions that were called."""
    from dmm.fused import steps

    names: list[str] = []
    real = kernel.call
    monkeypatch.setattr(steps, "call", lambda name, *more: names.append(name) or real(name, *more))
    return names


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[expected.dtype])
    else:
        for each, wanted in zip(found, expected, strict=True):
            assert_same(each, wanted)


@needs_kernel
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", MIXERS)
class TestEveryMixer:
    @pytest.mark.parametrize(("b", "length"), [(1, 1), (5, 7), (40, 24), (2, 70)])
    @torch.no_grad()
    def test_windows(self, kind: str, dtype: torch.dtype, normalized: bool, b: int, length: int) -> None:
        norm, mixer = pair(kind, dtype)
        x = torch.randn(b, length, WIDTH, dtype=dtype)
        fused = branch(norm, mixer, x, normalized)
        assert fused is not None
        expected = (norm(x) if normalized else x) + mixer(norm(x))
        assert_same(fused(), expected)
        assert_same(newest(norm, mixer, x, normalized), expected[:, -1])

    @torch.no_grad()
    def test_tokens_from_a_state(self, kind: str, dtype: torch.dtype, normalized: bool, calls: list[str]) -> None:
        norm, mixer = pair(kind, dtype)
        one, plain = cell(norm, mixer, normalized), BranchCell(norm, mixer, normalized)
        state = expected_state = mixer.init_state(21)
        for t in (3, 1, 3, 2, 8):
            x = torch.randn(21, t, WIDTH, dtype=dtype)
            rows = slice(4, 15)
            last, _ = one.newest(x, state, None, rows)
            y, state = one.extend(x, state)
            expected, expected_state = plain.extend(x, expected_state)
            assert_same((y, state), (expected, expected_state))
            assert_same(last, expected[rows, -1])
        assert len(calls) == 10

    @torch.no_grad()
    def test_absent_tokens(self, kind: str, dtype: torch.dtype, normalized: bool, calls: list[str]) -> None:
        norm, mixer = pair(kind, dtype)
        x, present = torch.randn(19, 3, WIDTH, dtype=dtype), torch.ones(19, 3, dtype=dtype)
        present[::2, 0], present[::3, :2] = 0, 0
        state = mixer.init_state(19)
        y, after = cell(norm, mixer, normalized).extend(x, state, present)
        expected, expected_after = BranchCell(norm, mixer, normalized).extend(x, state, present)
        assert_same(after, expected_after)
        assert_same(y[present > 0], expected[present > 0])
        assert len(calls) == 1

    @torch.no_grad()
    def test_states_are_not_changed(self, kind: str, dtype: torch.dtype, normalized: bool) -> None:
        norm, mixer = pair(kind, dtype)
        one, x = cell(norm, mixer, normalized), torch.randn(4, 3, WIDTH, dtype=dtype)
        _, state = one.extend(x, mixer.init_state(4))
        first, _ = one.extend(x, state)
        assert torch.equal(one.extend(x, state)[0], first)


@needs_kernel
@torch.no_grad()
def test_a_row_does_not_depend_on_the_others_nor_on_the_threads() -> None:
    norm, mixer = pair("mamba", torch.float32)
    one, x = cell(norm, mixer, False), torch.randn(50, 3, WIDTH)
    y, state = one.extend(x, mixer.init_state(50))
    alone, _ = one.extend(x[7:8], mixer.init_state(1))
    assert torch.equal(alone, y[7:8])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again, after = one.extend(x, mixer.init_state(50))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(again, y) and torch.equal(after.ssm, state.ssm)


@needs_kernel
class TestWhatIsLeftToTheModules:
    def test_gradients(self, calls: list[str]) -> None:
        norm, mixer = pair("mamba", torch.float32)
        y, _ = cell(norm, mixer, False).extend(torch.randn(2, 3, WIDTH), mixer.init_state(2))
        assert y.requires_grad and not calls

    @torch.no_grad()
    def test_the_choice_is_kept(self, calls: list[str]) -> None:
        norm, mixer = pair("dense", torch.float32)
        one, x = cell(norm, mixer, False), torch.randn(2, 3, WIDTH)
        with branches("plain"):
            one.extend(x, mixer.init_state(2))
            assert branch(norm, mixer, x, False) is None and not calls
        one.extend(x, mixer.init_state(2))
        assert calls == ["dense_step"]

    @torch.no_grad()
    def test_no_rows(self, calls: list[str]) -> None:
        norm, mixer = pair("mamba", torch.float32)
        y, state = cell(norm, mixer, False).extend(torch.randn(0, 3, WIDTH), mixer.init_state(0))
        assert y.shape == (0, 3, WIDTH) and state.ssm.shape == (0, 2 * WIDTH, 5) and not calls

    def test_other_mixers(self) -> None:
        assert type(cell(nn.LayerNorm(WIDTH), DepthwiseConv(WIDTH, 4), False)) is BranchCell

    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernel, "status", lambda: cpp.Status(None, "no C++ compiler found"))
        assert type(cell(*pair("dense", torch.float32), False)) is BranchCell

    def test_hooks(self) -> None:
        norm, mixer = pair("dense", torch.float32)
        mixer.linear.register_forward_hook(lambda *_: None)
        assert type(cell(norm, mixer, False)) is BranchCell

    @torch.no_grad()
    def test_states_of_another_kind(self, calls: list[str]) -> None:
        norm, mixer = pair("mamba", torch.float64)
        state = MambaState(*(part.float() for part in mixer.init_state(2)))
        with pytest.raises(RuntimeError):  # as from the modules
            cell(norm, mixer, False).extend(torch.randn(2, 3, WIDTH), state)
        assert not calls


SIZES: dict[str, Any] = {"state_size": 3, "action_size": 2}
POLICIES: dict[str, Callable[[], TokenPolicy]] = {
    "dmm": lambda: DecisionMetaMamba(DMMConfig(**SIZES)),
    "dmm, released": lambda: DecisionMetaMamba(DMMConfig.released(**SIZES)),
    "dmm, paper": lambda: DecisionMetaMamba(DMMConfig.paper(**SIZES)),
    "dmm, depthwise": lambda: DecisionMetaMamba(DMMConfig(**SIZES, local_mixer="depthwise")),
    "mamba": lambda: MambaPolicy(MambaConfig(**SIZES)),
}


def played(policy: TokenPolicy, way: tuple[str, int], n: int = 9) -> Tensor:
    actor, draw = make_actor(policy, *way), torch.Generator().manual_seed(2)
    state, reward, actions = actor.init_state(n, 3_600.0), None, []
    for _ in range(20):
        action, state = actor.act(state, torch.randn(n, 3, generator=draw), reward)
        reward = torch.rand(n, generator=draw)
        actions.append(action.clone())
    return torch.stack(actions)


@needs_kernel
@pytest.mark.parametrize("way", [("window", 1), ("recurrent", 1), ("staggered", 2), ("staggered", 4)])
@pytest.mark.parametrize("name", POLICIES)
def test_actions_are_those_of_the_modules(name: str, way: tuple[str, int], calls: list[str]) -> None:
    policy = POLICIES[name]().eval()
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.05 * torch.randn_like(weight)
    with branches("plain"):
        expected = played(policy, way)
    assert not calls and expected.std(dim=0).min() > 1e-3
    torch.testing.assert_close(played(policy, way), expected, rtol=0, atol=1e-5)
    assert calls


@needs_kernel
def test_a_layer_with_an_extend_of_its_own_keeps_it() -> None:
    class Louder(DMMBlock):
        def extend(self, x: Tensor, state: Any, present: Tensor | None = None) -> Any:
            y, state = super().extend(x, state, present)
            return 2 * y, state

    policy = DecisionMetaMamba(DMMConfig(**SIZES)).eval()
    before = played(policy, ("recurrent", 1))
    policy.blocks[0].__class__ = Louder
    assert not torch.allclose(played(policy, ("recurrent", 1)), before, atol=1e-3)
