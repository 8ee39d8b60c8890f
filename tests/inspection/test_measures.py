from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import InputError
from dmm.inspection import (
    activations,
    full_windows,
    gate_shares,
    gradient_norms,
    mamba_signals,
    modality_norms,
    probe,
    token_norms,
)
from dmm.layers.attention import attention_mask
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.models.dt import DecisionTransformer, DTConfig
from dmm.models.frame import TokenPolicy
from dmm.models.mamba import MambaConfig, MambaPolicy
from dmm.scan import selective_scan

FRAME: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 4, "width": 8, "layers": 2, "dropout": 0.5}
FRAME |= {"rtg_scale": 5.0}
SHARED: dict[str, Any] = {"share_dsm": True, "train_dsm": False}
POLICIES: dict[str, Callable[[], TokenPolicy]] = {
    "dmm": lambda: DecisionMetaMamba(DMMConfig(**FRAME, ssm_state=3)),
    "dmm, normalized": lambda: DecisionMetaMamba(DMMConfig(**FRAME, residual="normalized", dsm_bias=True)),
    "dmm-released, sparse": lambda: DecisionMetaMamba(DMMConfig.released(**FRAME, **SHARED)),
    "dmm, multimodal": lambda: DecisionMetaMamba(DMMConfig(**FRAME, local_mixer="multimodal")),
    "mamba": lambda: MambaPolicy(MambaConfig(**FRAME, ssm_state=3)),
    "dt": lambda: DecisionTransformer(DTConfig(**FRAME, heads=2)),
}
WITH_GATES = [name for name in POLICIES if name != "dt"]


def build(name: str) -> TokenPolicy:
    """In training mode with dropout, so that a measurement that forgets evaluation mode shows; in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = POLICIES[name]()
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        policy.set_state_moments(torch.randn(4), torch.rand(4) + 0.5)
    return policy.double().train()


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> TokenPolicy:
    return build(request.param)


def double(windows: Windows) -> Windows:
    floats = {name: getattr(windows, name).double() for name in ("returns_to_go", "states", "actions")}
    return dataclasses.replace(windows, **floats)


@pytest.fixture
def windows(trajectories: Trajectories) -> Windows:
    """Three without padding."""
    return double(full_windows(trajectories, 4, 3))


def stages_by_hand(policy: TokenPolicy, windows: Windows) -> dict[str, Tensor]:
    """Each model's forward pass written out, one line a stage."""
    policy.eval()
    x = policy.embed(windows)
    stages = {"embedding": x}
    x = stages["embedding, normed"] = F.layer_norm(x, (8,), policy.embed_norm.weight, policy.embed_norm.bias)
    for i, block in enumerate(policy.blocks, 1):
        if isinstance(policy, DecisionMetaMamba):
            normed = block.local_norm(x)
            added = stages[f"layer {i}, DSM"] = block.local_mixer(normed)
            x = (x if policy.config.residual == "raw" else normed) + added
            normed = block.global_norm(x)
            added = stages[f"layer {i}, Mamba"] = block.global_mixer(normed)
            x = (x if policy.config.residual == "raw" else normed) + added
        elif isinstance(policy, MambaPolicy):
            added = stages[f"layer {i}, Mamba"] = block.mixer(block.norm(x))
            x = x + added
        else:
            added = stages[f"layer {i}, attention"] = block.attention(
                block.attention_norm(x), attention_mask(windows.mask)
            )
            x = x + added
            added = stages[f"layer {i}, MLP"] = block.mlp(block.mlp_norm(x))
            x = x + added
        stages[f"layer {i}, output"] = x
    return stages


def assert_no_hooks(policy: TokenPolicy) -> None:
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in policy.modules())


class TestActivations:
    def test_equal_a_forward_pass_written_out(self, policy: TokenPolicy, windows: Windows) -> None:
        seen = activations(policy, windows)
        expected = stages_by_hand(policy, windows)
        assert list(seen) == list(expected)  # in the order in which they happen
        for name, value in expected.items():
            assert seen[name].shape == (3, 12, 8)
            torch.testing.assert_close(seen[name], value, msg=name)

    def test_names(self, windows: Windows) -> None:
        assert list(activations(build("dmm"), windows)) == [
            "embedding",
            "embedding, normed",
            "layer 1, DSM",
            "layer 1, Mamba",
            "layer 1, output",
            "layer 2, DSM",
            "layer 2, Mamba",
            "layer 2, output",
        ]
        assert list(activations(build("dt"), windows))[2:5] == ["layer 1, attention", "layer 1, MLP", "layer 1, output"]

    def test_of_a_module_that_layers_share_are_kept_apart(self, windows: Windows) -> None:
        policy = build("dmm-released, sparse")
        assert policy.blocks[0].local_mixer is policy.blocks[1].local_mixer
        seen = activations(policy, windows)
        assert not torch.allclose(seen["layer 1, DSM"], seen["layer 2, DSM"])

    def test_lead_to_the_action(self, policy: TokenPolicy, windows: Windows) -> None:
        last = list(activations(policy, windows).values())[-1]
        expected = policy.eval()(windows)
        torch.testing.assert_close(torch.tanh(policy.head(policy.norm(last[:, 1::3]))), expected)

    def test_padded_windows_are_no_problem(self, policy: TokenPolicy, trajectories: Trajectories) -> None:
        sampler = WindowSampler(trajectories, 4, generator=torch.Generator())
        padded = double(sampler.windows_at(torch.tensor([0, 12])))  # of episodes of 3 steps and of one
        assert not padded.mask.all()
        seen = activations(policy, padded)
        for name, value in stages_by_hand(policy, padded).items():
            torch.testing.assert_close(seen[name], value, msg=name)

    def test_carry_no_gradient_and_own_their_memory(self, policy: TokenPolicy, windows: Windows) -> None:
        seen = activations(policy, windows)
        assert not any(x.requires_grad for x in seen.values())
        assert len({x.data_ptr() for x in seen.values()}) == len(seen)


MEASUREMENTS: dict[str, Callable[[TokenPolicy, Windows], Any]] = {
    "activations": activations,
    "gradient_norms, action": lambda policy, windows: gradient_norms(policy, windows),
    "gradient_norms, loss": lambda policy, windows: gradient_norms(policy, windows, "loss"),
    "gate_shares": gate_shares,
    "mamba_signals": mamba_signals,
}


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
class TestEveryMeasurement:
    @pytest.mark.parametrize("training", [True, False])
    def test_leaves_the_policy_as_it_was(
        self, measure: Any, training: bool, policy: TokenPolicy, windows: Windows
    ) -> None:
        policy.train(training)
        before = {name: value.clone() for name, value in policy.state_dict().items()}
        measure(policy, windows)
        assert all(module.training == training for module in policy.modules())
        assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
        assert all(p.grad is None for p in policy.parameters())
        assert_no_hooks(policy)

    def test_is_the_same_in_training_mode_and_without_gradients(
        self, measure: Any, policy: TokenPolicy, windows: Windows
    ) -> None:
        first = measure(policy.train(), windows)
        with torch.no_grad():
            again = measure(policy.eval(), windows)
        torch.testing.assert_close(again, first, rtol=0, atol=0)

    def test_cleans_up_when_the_forward_pass_fails(self, measure: Any, policy: TokenPolicy, windows: Windows) -> None:
        def fail(*args: Any) -> None:
            raise RuntimeError("in the second layer")

        handle = policy.blocks[1].register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="in the second layer"):
            measure(policy, windows)
        handle.remove()
        assert policy.training
        assert_no_hooks(policy)


class TestNorms:
    def test_by_hand(self) -> None:
        # two windows of two time steps, two channels
        x = torch.arange(24.0).view(2, 6, 2) * torch.tensor([1.0, -1.0])
        # token t of window b: |12 b + 2 t| + |12 b + 2 t + 1| = 24 b + 4 t + 1; its mean over b: 4 t + 13
        assert token_norms(x).tolist() == [13.0, 17.0, 21.0, 25.0, 29.0, 33.0]
        assert modality_norms(x) == {"rtg": 19.0, "state": 23.0, "action": 27.0}

    def test_modalities_follow_the_order_of_the_tokens(self, windows: Windows) -> None:
        policy = build("dmm")
        norms = modality_norms(activations(policy, windows)["embedding"])
        scaled = (windows.states - policy.state_mean) / policy.state_std
        parts = {
            "rtg": policy.embed_rtg(windows.returns_to_go / 5),
            "state": policy.embed_state(scaled),
            "action": policy.embed_action(windows.actions),
        }
        assert norms == pytest.approx({name: x.abs().sum(-1).mean().item() for name, x in parts.items()})


def gradients_by_differences(policy: TokenPolicy, windows: Windows, objective: str, step: float = 1e-5) -> Tensor:
    """Each window by itself, each entry of each token moved both ways: `(b, l)` norms."""
    norms = []
    for i in range(len(windows.mask)):
        one = [getattr(windows, field.name)[i : i + 1] for field in dataclasses.fields(windows)]
        tokens = policy.embed(Windows(*one))  # (1, l, d)
        moves = step * torch.eye(tokens.numel(), dtype=tokens.dtype).view(-1, *tokens.shape[1:])  # (l * d, l, d)
        copies = Windows(*(value.expand(len(moves), *value.shape[1:]) for value in one))
        up, down = (policy.decode(tokens + sign * moves, copies) for sign in (1, -1))  # (l * d, k, a)
        if objective == "action":
            slopes = (up[:, -1] - down[:, -1]) / (2 * step)  # (l * d, a)
        else:
            loss_up, loss_down = ((actions - copies.actions).square().mean((1, 2)) for actions in (up, down))
            slopes = ((loss_up - loss_down) / (2 * step))[:, None]
        norms.append(slopes.view(tokens.shape[1], -1).norm(dim=-1))
    return torch.stack(norms)


class TestGradientNorms:
    @pytest.mark.parametrize("objective", ["action", "loss"])
    @torch.no_grad()
    def test_equal_finite_differences(self, objective: Any, policy: TokenPolicy, windows: Windows) -> None:
        expected = gradients_by_differences(policy.eval(), windows, objective).mean(0)
        torch.testing.assert_close(gradient_norms(policy, windows, objective), expected, rtol=1e-5, atol=1e-8)

    @pytest.mark.parametrize("objective", ["action", "loss"])
    def test_are_means_over_windows(self, objective: Any, policy: TokenPolicy, windows: Windows) -> None:
        fields = dataclasses.fields(windows)
        alone = [
            gradient_norms(policy, Windows(*(getattr(windows, f.name)[i : i + 1] for f in fields)), objective)
            for i in range(3)
        ]
        torch.testing.assert_close(gradient_norms(policy, windows, objective), torch.stack(alone).mean(0))

    @pytest.mark.parametrize("objective", ["action", "loss"])
    def test_only_the_last_action_token_has_none(self, objective: Any, policy: TokenPolicy, windows: Windows) -> None:
        norms = gradient_norms(policy, windows, objective)
        assert norms.shape == (12,) and norms[-1] == 0 and bool((norms[:-1] > 0).all())

    def test_of_a_window_of_tokens_end_where_it_does(self, windows: Windows) -> None:
        # one layer of DSM alone sees `window` tokens, of which the last state token is the newest
        policy = DecisionMetaMamba(DMMConfig(**(FRAME | {"layers": 1}), window=4)).double()
        policy.blocks[0].global_mixer.out_proj.weight.data.zero_()
        reached = (gradient_norms(policy, windows) > 0).int().tolist()
        assert reached == [0] * 7 + [1] * 4 + [0]

    def test_action_is_the_default(self, windows: Windows) -> None:
        policy = build("dmm")
        assert torch.equal(gradient_norms(policy, windows), gradient_norms(policy, windows, "action"))

    def test_unknown_objective_is_named(self, windows: Windows) -> None:
        with pytest.raises(InputError, match=r"^objective: got 'return', allowed are action, loss$"):
            gradient_norms(build("dmm"), windows, "return")  # type: ignore[arg-type]


@torch.no_grad()
def gates_by_hand(policy: TokenPolicy, windows: Windows) -> list[tuple[Tensor, Tensor]]:
    """The scan's output and the gate before its SiLU, in each layer, from the residual stream that enters it."""
    stages, pairs = stages_by_hand(policy, windows), []
    x = stages["embedding, normed"]
    for i, block in enumerate(policy.blocks, 1):
        if isinstance(policy, DecisionMetaMamba):
            mamba = block.global_mixer
            stream = x if policy.config.residual == "raw" else block.local_norm(x)
            given = block.global_norm(stream + stages[f"layer {i}, DSM"])
        else:
            mamba, given = block.mixer, block.norm(x)
        u, z = mamba.in_proj(given).chunk(2, dim=-1)
        if mamba.conv1d is not None:
            u = F.conv1d(F.pad(u.mT, (3, 0)), mamba.conv1d.weight, mamba.conv1d.bias, groups=mamba.inner).mT
        u = F.silu(u)
        low, B, C = mamba.x_proj(u).split([mamba.rank, mamba.state_size, mamba.state_size], dim=-1)
        y = selective_scan(u, F.softplus(mamba.dt_proj(low)), -mamba.A_log.exp(), B, C, mamba.D)
        pairs.append((y, z))
        x = stages[f"layer {i}, output"]
    return pairs


class TestGates:
    @pytest.mark.parametrize("name", WITH_GATES)
    def test_shares_equal_a_computation_by_hand(self, name: str, windows: Windows) -> None:
        policy = build(name)
        shares = gate_shares(policy, windows)
        assert list(shares) == ["layer 1", "layer 2"]
        for share, (y, z) in zip(shares.values(), gates_by_hand(policy, windows), strict=True):
            expected = [
                np.mean([((y[i, t] * F.silu(z[i, t])).abs().sum() / y[i, t].abs().sum()).item() for i in range(3)])
                for t in range(12)
            ]
            assert share.tolist() == pytest.approx(expected)

    @pytest.mark.parametrize("name", WITH_GATES)
    def test_signals_are_those_of_each_layer(self, name: str, windows: Windows) -> None:
        policy = build(name)
        signals = mamba_signals(policy, windows)
        assert list(signals) == ["layer 1", "layer 2"]
        for each, (y, z) in zip(signals.values(), gates_by_hand(policy, windows), strict=True):
            torch.testing.assert_close(each.z, z)
            torch.testing.assert_close(each.y, y)

    def test_a_shut_gate_lets_nothing_through(self, windows: Windows) -> None:
        policy = build("mamba")
        policy.blocks[1].mixer.in_proj.weight.data[16:] = 0  # z = 0, and silu(0) = 0
        shares = gate_shares(policy, windows)
        assert not shares["layer 2"].any() and bool((shares["layer 1"] > 0).all())

    def test_a_policy_without_gates_has_none(self, windows: Windows) -> None:
        assert gate_shares(build("dt"), windows) == {} and mamba_signals(build("dt"), windows) == {}


class TestProbe:
    @staticmethod
    def samples(count: int, seed: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Channels of very different size and centre, and two targets that are linear in them, plus noise."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, 5, generator=generator) * torch.tensor([1e-3, 1.0, 30.0, 0.5, 2.0]) + 7
        mix = torch.tensor([[1000.0, 0.0], [0.5, 1.0], [0.0, 0.1], [2.0, 0.0], [0.0, -1.0]])
        return x, x @ mix + 3 + noise * torch.randn(count, 2, generator=generator)

    def test_what_is_linear_is_read_completely(self) -> None:
        assert probe(*self.samples(400, 0, 0.0), *self.samples(200, 1, 0.0)) == pytest.approx(1, abs=1e-5)

    def test_noise_leaves_what_least_squares_leaves(self) -> None:
        (x, target), (new_x, new_target) = self.samples(400, 0, 2.0), self.samples(200, 1, 2.0)
        design, new = (np.column_stack([s.double(), np.ones(len(s))]) for s in (x, new_x))
        error = new @ np.linalg.lstsq(design, target.double().numpy(), rcond=None)[0] - new_target.double().numpy()
        expected = (1 - (error**2).mean(0) / new_target.double().numpy().var(0)).mean()
        assert probe(x, target, new_x, new_target) == pytest.approx(expected, abs=1e-3)
        assert 0.3 < expected < 0.9

    def test_what_is_not_there_cannot_be_read(self) -> None:
        (x, _), (new_x, _) = self.samples(400, 0, 0.0), self.samples(200, 1, 0.0)
        (_, other), (_, new_other) = self.samples(400, 2, 0.0), self.samples(200, 3, 0.0)
        assert -0.2 < probe(x, other, new_x, new_other) < 0.05

    def test_a_channel_that_never_changes_does_no_harm(self) -> None:
        (x, target), (new_x, new_target) = self.samples(400, 0, 0.0), self.samples(200, 1, 0.0)
        x, new_x = (torch.cat([s, torch.ones(len(s), 1)], 1) for s in (x, new_x))
        assert probe(x, target, new_x, new_target) == pytest.approx(1, abs=1e-5)


class TestFullWindows:
    LENGTHS, CONTEXT = (3, 9, 1, 12, 7, 5), 5

    @pytest.fixture
    def data(self, make_trajectories: Any) -> Trajectories:
        made: Trajectories = make_trajectories(lengths=self.LENGTHS)
        return made

    def rows(self, data: Trajectories, windows: Windows) -> np.ndarray:
        """The transition at every place of every window, `(b, k)`, found by its state."""
        index = {state.tobytes(): row for row, state in enumerate(data.observations)}
        return np.array([[index[state.tobytes()] for state in window] for window in windows.states.numpy()])

    def test_are_consecutive_steps_of_one_episode(self, data: Trajectories) -> None:
        windows = full_windows(data, self.CONTEXT, 300)
        rows = self.rows(data, windows)
        assert bool(windows.mask.all()) and rows.shape == (300, 5)
        assert (np.diff(rows) == 1).all()
        episode = np.searchsorted(data.starts, rows, side="right") - 1
        assert (episode == episode[:, :1]).all()
        assert np.array_equal(windows.timesteps.numpy(), rows - data.starts[episode])
        assert np.array_equal(windows.actions.numpy(), data.actions[rows])
        assert np.array_equal(windows.returns_to_go[..., 0].numpy(), data.returns_to_go()[rows])

    def test_are_uniform_over_all_that_there_are(self, data: Trajectories) -> None:
        possible = [
            start + offset
            for start, length in zip(data.starts, data.lengths, strict=True)
            for offset in range(length - self.CONTEXT + 1)
        ]
        assert len(possible) == 5 + 8 + 3 + 1
        first = self.rows(data, full_windows(data, self.CONTEXT, 8500))[:, 0]
        counts = [int((first == row).sum()) for row in possible]
        assert sum(counts) == 8500 and stats.chisquare(counts).pvalue > 0.01

    def test_are_decided_by_the_seed(self, data: Trajectories) -> None:
        first, again, other = (full_windows(data, self.CONTEXT, 20, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(first.states, again.states) and not torch.equal(first.states, other.states)

    def test_leave_torchs_own_generator_alone(self, data: Trajectories) -> None:
        before = torch.get_rng_state()
        full_windows(data, self.CONTEXT, 20)
        assert torch.equal(torch.get_rng_state(), before)

    def test_one_possible_window_is_drawn_again_and_again(self, data: Trajectories) -> None:
        windows = full_windows(data, 12, 4)
        assert self.rows(data, windows)[:, 0].tolist() == [13] * 4

    @pytest.mark.parametrize("count", [0, -1])
    def test_count_below_one_is_named(self, data: Trajectories, count: int) -> None:
        with pytest.raises(InputError, match=f"^count: got {count}, allowed is a whole number of at least 1$"):
            full_windows(data, self.CONTEXT, count)

    def test_context_that_no_episode_has_is_named(self, data: Trajectories) -> None:
        with pytest.raises(InputError, match=r"^context: got 13, the longest episode has 12 steps$"):
            full_windows(data, 13, 1)

    def test_context_below_one_is_named(self, data: Trajectories) -> None:
        with pytest.raises(InputError, match=r"^context: got 0"):
            full_windows(data, 0, 1)
