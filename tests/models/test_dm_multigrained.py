from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm.data.windows import Windows
from dmm.errors import InputError
from dmm.models.dm_multigrained import MODEL, MultigrainedConfig, MultigrainedDecisionMamba
from dmm.models.entry import Facts
from dmm.models.official import from_official
from dmm.models.registry import read_changes
from dmm.training import TrainConfig

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 5, "width": 8, "layers": 2, "rtg_scale": 2.0}
PUBLISHED = {
    "Hopper-v5": (11, 3, 262_953_999),
    "Walker2d-v5": (17, 6, 265_330_200),
    "antmaze-umaze-v2": (29, 8, 265_351_718),
    "kitchen-complete-v0": (60, 9, 265_400_902),
}
"""State size, action size, and the weights of the released model, its vocabulary included."""
VOCABULARY = 50_280 * 768


def small(**changes: Any) -> MultigrainedDecisionMamba:
    """In float64, with weights that are strong enough for every dependence to show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = MultigrainedDecisionMamba(MultigrainedConfig(**(SMALL | changes))).double()
        for weight in policy.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
    return policy.eval()


def random_windows(padded: tuple[int, ...] = (0,), k: int = 5) -> Windows:
    """One window for each number of padded steps, in float64."""
    mask = torch.arange(k) >= torch.tensor(padded)[:, None]
    b, real, draw = len(padded), mask[..., None], torch.Generator().manual_seed(1)
    return Windows(
        returns_to_go=torch.rand(b, k, 1, generator=draw, dtype=torch.float64) * real,
        states=torch.randn(b, k, 4, generator=draw, dtype=torch.float64) * real,
        actions=torch.rand(b, k, 2, generator=draw, dtype=torch.float64) * real,
        timesteps=(torch.arange(k) - torch.tensor(padded)[:, None]) * mask,
        mask=mask,
    )


class Recorded:
    """What the authors' code computed, and our policy with the same weights."""

    def __init__(self, name: str):
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
            self.sizes = json.loads(str(file["config"]))
        moments = {each: self.arrays[f"inputs/{each}"] for each in ("state_mean", "state_std")}
        made = from_official("dm-multigrained", GOLDEN / f"{name}.npz", self.sizes | moments)
        self.policy = cast(MultigrainedDecisionMamba, made)

    def __getitem__(self, key: str) -> Tensor:
        return self.arrays[key]

    def windows(self) -> Windows:
        fields = ("raw_returns_to_go", "raw_states", "actions", "raw_timesteps")
        return Windows(*(self[f"inputs/{field}"] for field in fields), self["inputs/mask"].bool())

    def training(self) -> MultigrainedDecisionMamba:
        """The policy as the authors train it, where padded steps hold other numbers; it has no dropout."""
        config = dataclasses.replace(self.policy.config, padding="released")
        policy = MultigrainedDecisionMamba(config)
        policy.load_state_dict(self.policy.state_dict())
        return policy.train()


@pytest.fixture(params=["dm_multigrained", "dm_multigrained_mlp"])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    with torch.random.fork_rng():
        return Recorded(request.param)


class TestOfficial:
    @pytest.mark.parametrize("training", [False, True])
    def test_heads_equal_the_authors(self, recorded: Recorded, training: bool) -> None:
        policy, suffix = (recorded.training(), "_train") if training else (recorded.policy, "")
        windows = recorded.windows()
        made = policy.predict(windows)
        for ours, head in zip(made, ("action", "state", "return"), strict=True):
            theirs = recorded[f"outputs{suffix}/{head}_preds"]
            torch.testing.assert_close(ours[windows.mask], theirs[windows.mask], rtol=0, atol=1e-5)
        assert torch.equal(policy(windows), made.actions)

    def test_parts_of_the_first_layer_equal_the_authors(self, recorded: Recorded) -> None:
        policy, windows, seen = recorded.policy, recorded.windows(), {}
        first: Any = policy.blocks[0]
        places = {
            "tokens_before_time": policy.embed_norm,
            "mixer_0": first.mixer,
            "group_conv_0": first.fine.gather,
            "mixer_group_0": first.fine.mixer,
            "group_norm_0": first.fine,
            "layer_0": first,
            "hidden": policy.norm,
        }
        for name, module in places.items():
            module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        policy(windows)
        for name in places:
            torch.testing.assert_close(seen[name], recorded[f"outputs/{name}"], rtol=1e-5, atol=2e-5, msg=name)

    def test_episode_is_played_as_the_authors_play_it(self, recorded: Recorded) -> None:
        observations, rewards = recorded["episode/observations"], recorded["episode/rewards"]
        state = recorded.policy.init_state(1, float(recorded["episode/target_return"]))
        for t, expected in enumerate(recorded["outputs/episode_actions"]):
            action, state = recorded.policy.act(state, observations[t : t + 1], rewards[t - 1 : t] if t else None)
            torch.testing.assert_close(action[0], expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("training", [False, True])
    def test_loss_and_gradients_equal_the_authors(self, recorded: Recorded, training: bool) -> None:
        policy, suffix = (recorded.training(), "_train") if training else (recorded.policy, "")
        loss = torch.stack(list(policy.loss(recorded.windows()).values())).sum()
        torch.testing.assert_close(loss, recorded[f"loss{suffix}"], rtol=1e-4, atol=0)
        weights = dict(policy.named_parameters())
        found = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        norm = torch.stack([each.norm() for each in found.values()]).norm()
        torch.testing.assert_close(norm, recorded[f"grad_norm{suffix}"], rtol=1e-4, atol=0)
        assert MODEL.official is not None
        ours = {source: name for name, source in MODEL.official.sources(policy).items()}
        keys = [key for key in recorded.arrays if key.startswith(f"grads{suffix}/")]
        assert len(keys) == 7
        for key in keys:
            expected = recorded[key]
            atol = 1e-4 * float(expected.abs().max())
            torch.testing.assert_close(found[ours[key.split("/", 1)[1]]], expected, rtol=1e-4, atol=atol, msg=key)

    @pytest.mark.parametrize("embedding", ["linear", "mlp"])
    def test_weights_of_other_sizes_are_read(self, embedding: str) -> None:
        policy = small(embedding=embedding, layers=3, width=20, ssm_state=5, expand=1, conv_width=3, max_timestep=9)
        assert MODEL.official is not None
        own = policy.state_dict()
        theirs = {str(source): own[name].numpy() for name, source in MODEL.official.sources(policy).items()}
        theirs["transformer_model.backbone.embeddings.weight"] = np.zeros((7, 20))
        sizes = dataclasses.asdict(policy.config) | {"mlp_embedding": embedding == "mlp", "step_rank": 2}
        read = from_official("dm-multigrained", theirs, sizes).double()
        windows = random_windows((0, 3))
        torch.testing.assert_close(read(windows), policy(windows), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mlp_embedding": None}, "mlp_embedding: got None, allowed are True and False"),
            ({"mlp_embedding": True}, "they are not those of this dm-multigrained"),
            ({"action_tanh": False}, "action_tanh: got False, allowed with mlp_embedding=False is True"),
            ({"group_repeat": "own"}, "groups: got 'own', allowed are tile, previous"),
            ({"width": 0}, "width: got 0, allowed is at least 1"),
        ],
    )
    def test_wrong_sizes_are_named(self, changes: dict[str, Any], message: str) -> None:
        recorded = Recorded("dm_multigrained")
        sizes = {name: value for name, value in recorded.sizes.items() if name != "action_tanh"} | changes
        with pytest.raises(InputError, match=f"^((config|weights): .*)?{message}"):
            from_official("dm-multigrained", GOLDEN / "dm_multigrained.npz", sizes)


class TestSizes:
    @pytest.mark.parametrize("env_id", PUBLISHED)
    def test_published_sizes_have_the_released_number_of_weights(self, env_id: str) -> None:
        state_size, action_size, released = PUBLISHED[env_id]
        facts = Facts(state_size=state_size, action_size=action_size, env_id=env_id)
        changes, recipe = read_changes({"sizes": "published"}, MODEL, TrainConfig, facts)
        with torch.device("meta"):
            policy = MODEL.policy(MODEL.config_for(facts, changes))
        assert policy.parameter_count() + VOCABULARY == released
        assert policy.context == 20
        training = TrainConfig(**recipe)
        assert (training.steps, training.warmup * training.steps, training.epsilon) == (100_000, 2_500, 1e-6)

    def test_frame_sizes_for_hopper(self) -> None:
        # d = 64, e = 128, n = 16, rank 4. A Mamba: in 16,384, conv 640, x 4,608, dt 640, A 2,048, D 128, out 8,192 =
        # 32,640; layer: two of them, convolution over steps 12,352, norms 64 and 128 = 77,824. Embeddings 128 + 768 +
        # 256, norm 128, times 64,000, last norm 64, heads 195 + 715 + 65.
        assert 1_152 + 128 + 64_000 + 64 + 975 + 3 * 77_824 == 299_791
        assert MODEL.policy(MODEL.make_config(11, 3, "Hopper-v5")).parameter_count() == 299_791

    def test_only_hopper_has_linear_embeddings(self) -> None:
        found = {env_id: MODEL.make_config(4, 2, env_id).embedding for env_id in ("", *PUBLISHED)}
        assert found.pop("Hopper-v5") == "linear" and set(found.values()) == {"mlp"}

    @pytest.mark.parametrize(("env_id", "scale"), [("Hopper-v5", 1000.0), ("kitchen-complete-v0", 1.0)])
    def test_published_scale_of_returns(self, env_id: str, scale: float) -> None:
        assert MODEL.published is not None
        assert MODEL.published(Facts(state_size=4, action_size=2, env_id=env_id))["rtg_scale"] == scale

    def test_starts_as_the_release_does(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy: Any = MODEL.policy(MODEL.make_config(11, 3, "Hopper-v5"))
        assert policy.time_table.weight.std().item() == pytest.approx(1, rel=0.02)
        bound = 11**-0.5  # PyTorch's own start
        assert 0.9 * bound < policy.embed_state.weight.abs().max().item() <= bound and bool(policy.head.bias.any())
        steps = torch.nn.functional.softplus(policy.blocks[0].fine.mixer.dt_proj.bias)
        assert steps.min().item() >= 1e-3 - 1e-6 and steps.max().item() <= 0.1 + 1e-6


def reached(policy: MultigrainedDecisionMamba, windows: Windows) -> dict[str, Tensor]:
    """Which prediction depends on which step's input, by the Jacobian: field -> `(k, k)`, row t for step t's action."""
    given = {name: getattr(windows, name).clone().requires_grad_() for name in ("returns_to_go", "states", "actions")}
    predicted = policy(dataclasses.replace(windows, **given))[0]  # (k, a)
    rows = [torch.autograd.grad(row.sum(), list(given.values()), retain_graph=True) for row in predicted]
    return {name: torch.stack([row[i][0].abs().sum(-1) > 0 for row in rows]) for i, name in enumerate(given)}


def tiled(k: int, layers: int) -> Tensor:
    """Which of the 3k tokens see which, by the release's layout: `(3k, 3k)` bool."""
    fine = torch.zeros(3 * k, 3 * k)
    for token in range(3 * k):
        fine[token, : 3 * (token % k + 1)] = 1  # all groups up to the one that it is given
    fine[:, -1] = 0
    one = fine + torch.ones(3 * k, 3 * k).tril()
    return torch.linalg.matrix_power(one.clamp(max=1), layers) > 0


class TestReach:
    @pytest.mark.parametrize(("k", "layers"), [(1, 1), (2, 1), (5, 1), (8, 1), (8, 3), (9, 2), (20, 1)])
    def test_as_released_predictions_see_what_the_tiling_shows_them(self, k: int, layers: int) -> None:
        found = reached(small(context=k, layers=layers), random_windows(k=k))
        expected = tiled(k, layers)[1::3]  # the state tokens
        for place, field in enumerate(("returns_to_go", "states", "actions")):
            assert torch.equal(found[field], expected[:, place::3]), field

    @pytest.mark.parametrize("layers", [1, 3])
    def test_as_released_the_action_to_be_predicted_is_in_the_input(self, layers: int) -> None:
        # full windows of the published context: the first layer alone shows it to ten steps, three to all but one
        own = reached(small(context=20, layers=layers), random_windows(k=20))["actions"].diagonal()
        assert own.nonzero().flatten().tolist() == ([*range(7), *range(10, 13)] if layers == 1 else [*range(19)])

    def test_as_released_two_layers_show_almost_every_step_everything(self) -> None:
        found = reached(small(context=9), random_windows(k=9))
        assert bool(found["actions"][1:-1, :-1].all()) and bool(found["states"][1:-1].all())

    @pytest.mark.parametrize("groups", ["tile", "previous"])
    @pytest.mark.parametrize("k", [1, 2, 7, 20])
    def test_the_last_step_sees_no_action_of_its_own(self, groups: Any, k: int) -> None:
        found = reached(small(context=k, layers=3, groups=groups), random_windows(k=k))
        assert not bool(found["actions"][-1, -1]) and bool(found["actions"][-1, :-1].all())
        assert bool(found["states"][-1].all()) and bool(found["returns_to_go"][-1].all())

    @pytest.mark.parametrize("embedding", ["linear", "mlp"])
    def test_groups_of_the_step_before_are_causal(self, embedding: Any) -> None:
        found = reached(small(groups="previous", embedding=embedding), random_windows())
        past = torch.ones(5, 5, dtype=torch.bool).tril()
        assert torch.equal(found["returns_to_go"], past) and torch.equal(found["states"], past)
        assert torch.equal(found["actions"], past.tril(-1))

    def test_groups_of_the_step_before_reach_every_token_of_a_step(self) -> None:
        layer: Any = small(groups="previous").blocks[0]
        h = torch.randn(2, 15, 8, dtype=torch.float64)
        f = layer.fine(h).unflatten(1, (5, 3))
        g = layer.fine.norm(layer.fine.mixer(layer.fine.gather(h.mT).mT))
        assert not f[:, 0].any()
        for token in range(3):
            torch.testing.assert_close(f[:, 1:, token], g[:, :-1])


SHORT: dict[str, Any] = {"state_size": 1, "action_size": 1, "context": 6, "width": 16, "layers": 1, "ssm_state": 2}


def windows_of_chance(b: int) -> Windows:
    zeros, actions = torch.zeros(b, 6, 1), 2 * torch.rand(b, 6, 1) - 1
    return Windows(zeros, zeros, actions, torch.arange(6).expand(b, 6), torch.ones(b, 6, dtype=torch.bool))


@pytest.mark.parametrize("groups", ["tile", "previous"])
def test_training_on_actions_of_chance_copies_those_that_the_release_shows(groups: Any) -> None:
    # nothing but the action itself tells what it is; one layer of k = 6 shows it at steps 0, 1 and 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = MultigrainedDecisionMamba(MultigrainedConfig(**SHORT, groups=groups))
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
        for _ in range(120):
            optimizer.zero_grad()
            torch.stack(list(policy.loss(windows_of_chance(32)).values())).sum().backward()
            optimizer.step()
        fresh = windows_of_chance(500)
    error = (policy(fresh) - fresh.actions).square().mean(dim=(0, 2)) / fresh.actions.square().mean()
    copied = (error < 0.5).nonzero().flatten().tolist()
    assert copied == ([0, 1, 3] if groups == "tile" else []) and bool((error[[2, 4, 5]] > 0.9).all())


class TestLoss:
    def test_terms_are_weighted_means_over_the_steps_that_count(self) -> None:
        policy, windows = small(), random_windows((0, 2, 4))
        policy.set_state_moments(torch.full((4,), 0.5), torch.full((4,), 2.0))
        found = policy.predict(windows)
        squares, states, returns = [], [], []
        for row, step in windows.mask.nonzero().tolist():
            squares.append((found.actions[row, step] - windows.actions[row, step]).square())
            if step:  # its prediction comes from the step before, a padded one included
                target = (windows.states[row, step] - 0.5) / 2
                states.append(torch.nn.functional.smooth_l1_loss(found.next_states[row, step - 1], target))
                scaled = windows.returns_to_go[row, step] / policy.config.rtg_scale
                returns.append(torch.nn.functional.smooth_l1_loss(found.next_returns[row, step - 1], scaled))
        terms = policy.loss(windows)
        assert tuple(terms) == policy.terms == ("action", "state", "return")
        torch.testing.assert_close(terms["action"], 0.9 * torch.stack(squares).mean())
        torch.testing.assert_close(terms["state"], 0.05 * torch.stack(states).mean())
        torch.testing.assert_close(terms["return"], 0.05 * torch.stack(returns).mean())

    @pytest.mark.parametrize("alpha", [0.3, 0.5])
    def test_self_evolution_as_written_in_the_release_only_scales_the_actions_term(self, alpha: float) -> None:
        windows, (plain, scaled) = random_windows((0, 2)), (small(), small(evolution=alpha))
        without, terms = plain.loss(windows), scaled.loss(windows)
        mixed = (1 - alpha) * windows.actions + alpha * scaled(windows)  # the target, not detached
        released = 0.9 * (scaled(windows) - mixed).square()[windows.mask].mean()
        torch.testing.assert_close(terms["action"], released)
        torch.testing.assert_close(terms["action"], (1 - alpha) ** 2 * without["action"])
        assert torch.equal(terms["state"], without["state"]) and torch.equal(terms["return"], without["return"])
        for term in (released, terms["action"]):
            gradient = torch.autograd.grad(term, scaled.head.first.weight, retain_graph=True)[0]
            expected = torch.autograd.grad(without["action"], plain.head.first.weight, retain_graph=True)[0]
            torch.testing.assert_close(gradient, (1 - alpha) ** 2 * expected)

    @pytest.mark.parametrize(("k", "padded"), [(1, (0, 0)), (5, (4, 4))])
    def test_windows_of_one_real_step_have_the_actions_term_alone(self, k: int, padded: tuple[int, ...]) -> None:
        policy = small(context=k)
        mask = torch.zeros(2, k, dtype=torch.bool)
        mask[:, 0 if k == 5 else -1] = True  # no step but the first is real, so none has a real next one
        terms = policy.loss(dataclasses.replace(random_windows(padded, k), mask=mask))
        assert terms["state"] == 0 and terms["return"] == 0 and bool(terms["action"] > 0)
        gradients = torch.autograd.grad(sum(terms.values()), list(policy.parameters()), allow_unused=True)  # type: ignore[arg-type]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)


def test_padding_is_read_like_anything_else() -> None:
    policy, windows = small(), random_windows((2,))
    shorter = windows.map(lambda field: field[:, 2:])
    assert not torch.allclose(policy(windows)[:, 2:], policy(shorter), atol=1e-3)
    filled = dataclasses.replace(windows, states=windows.states + ~windows.mask[..., None])
    assert torch.equal(policy(filled), policy(windows))  # it holds zeros, whatever is given


def test_times_beyond_the_last_share_its_embedding() -> None:
    policy, windows = small(max_timestep=3), random_windows()
    at = {step: policy(dataclasses.replace(windows, timesteps=torch.full((1, 5), step))) for step in (1, 2, 3, 999)}
    assert torch.equal(at[3], at[2]) and torch.equal(at[999], at[2]) and not torch.allclose(at[1], at[2])


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("groups", "own", "tile, previous"),
        ("embedding", "conv", "linear, mlp"),
        ("evolution", 0.6, "0 to 0.5"),
        ("evolution", -0.1, "0 to 0.5"),
        ("max_timestep", 0, "at least 1"),
        ("conv_width", 0, "at least 1"),
        ("layers", 0, "at least 1"),
    ],
)
def test_wrong_field_is_named(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: got .*, allowed .*{allowed}") as caught:
        MultigrainedConfig(**(SMALL | {field: value}))
    assert "\n" not in str(caught.value)
