"""The models of the shared frame against numbers of their authors' own code, in other sizes than the published."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm import from_official
from dmm.acting import make_actor
from dmm.data.windows import Windows
from dmm.errors import InputError
from dmm.inspection import activations
from dmm.layers.mamba import MambaBlock
from dmm.models.entry import Facts
from dmm.models.frame import TokenPolicy
from dmm.models.official import load_official
from dmm.models.registry import MODELS, read_changes
from dmm.training import TrainConfig
from tests.peers import official_block

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = {"dt": "dt", "dc": "dc", "dc-no-actions": "dc_no_actions", "dm": "dm"}
UNUSED = {"dt": {"transformer.wte.weight"}, "dc-no-actions": {"embed_action.weight", "embed_action.bias"}}
UNUSED["dt"] |= {f"predict_{what}.{part}" for what in ("state", "return") for part in ("weight", "bias")}


class Golden:
    """One file: its config, the authors' weights, and the policy that they make."""

    def __init__(self, name: str, file: str):
        self.name = name
        with np.load(GOLDEN / f"{file}.npz") as arrays:
            self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "config"}
            self.config: dict[str, Any] = json.loads(str(arrays["config"]))
        self.weights = self.under("weights/") | {k: v for k, v in self.arrays.items() if k.startswith("unregistered/")}
        if "inputs/state_mean" in self.arrays:
            self.config |= {each: self.arrays[f"inputs/{each}"] for each in ("state_mean", "state_std")}

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)}

    def policy(self) -> TokenPolicy:
        made = from_official(self.name, self.weights, self.config)
        assert isinstance(made, TokenPolicy) and not made.training
        return made

    def as_trained(self) -> TokenPolicy:
        """In training mode, with the authors' padding and without dropout."""
        policy, official = self.policy(), MODELS[self.name].official
        changed = type(policy)(dataclasses.replace(policy.config, padding="released", dropout=0.0))
        assert official is not None
        load_official(changed, self.weights, official, self.name)
        changed.set_state_moments(policy.state_mean, policy.state_std)
        return changed.train()

    def windows(self) -> Windows:
        names = ("raw_returns_to_go", "raw_states", "actions", "raw_timesteps", "mask")
        returns, states, actions, timesteps, mask = (self.arrays[f"inputs/{each}"] for each in names)
        return Windows(returns, states, actions, timesteps, mask.bool())

    def compare_gradients(self, policy: TokenPolicy, loss: Tensor, kind: str) -> None:
        official = MODELS[self.name].official
        assert official is not None
        sources = official.sources(policy)
        ours = {
            (source if isinstance(source, str) else source[0]): (
                key,
                (lambda x: x) if isinstance(source, str) else source[1],
            )
            for key, source in sources.items()
        }
        own = dict(policy.named_parameters())
        for theirs, expected in self.under(kind).items():
            key, translate = ours[theirs]
            (found,) = torch.autograd.grad(loss, own[key], retain_graph=True)
            expected = translate(expected)
            assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), theirs


@pytest.fixture(params=FILES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param, FILES[request.param])


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_actions_are_theirs(golden: Golden) -> None:
    windows = golden.windows()
    near(golden.policy()(windows)[windows.mask], golden.arrays["outputs/action_preds"][windows.mask])


def test_stages_are_theirs(golden: Golden) -> None:
    windows, policy = golden.windows(), golden.policy()
    stages, given = activations(policy, windows), golden.arrays
    real = windows.mask.repeat_interleave(len(policy.TOKENS), dim=1)
    pairs = {"embedding, normed": "tokens", "layer 1, output": "layer_0", "layer 2, output": "layer_1"}
    pairs |= {"layer 1, convolution": "conv_0", "layer 1, Mamba": "mamba_0"}
    compared = [(mine, theirs) for mine, theirs in pairs.items() if mine in stages]
    assert len(compared) == (3 if golden.name == "dt" else 4)
    for mine, theirs in compared:
        torch.testing.assert_close(stages[mine][real], given[f"outputs/{theirs}"][real], rtol=1e-5, atol=3e-5)


def test_loss_and_gradients_are_theirs(golden: Golden) -> None:
    policy = golden.policy()
    (loss,) = policy.loss(golden.windows()).values()
    assert loss.item() == pytest.approx(float(golden.arrays["loss"]), rel=1e-4)
    golden.compare_gradients(policy, loss, "grads/")


def test_training_with_their_padding_is_theirs(golden: Golden) -> None:
    policy, windows = golden.as_trained(), golden.windows()
    near(policy(windows)[windows.mask], golden.arrays["outputs_train/action_preds"][windows.mask])
    (loss,) = policy.loss(windows).values()
    assert loss.item() == pytest.approx(float(golden.arrays["loss_train"]), rel=1e-4)
    golden.compare_gradients(policy, loss, "grads_train/")


def played(actor: Any, golden: Golden) -> Tensor:
    """The actions in the recorded episode."""
    observations, rewards = golden.arrays["episode/observations"], golden.arrays["episode/rewards"]
    state, actions = actor.init_state(1, float(golden.arrays["episode/target_return"])), []
    for t, observation in enumerate(observations):
        action, state = actor.act(state, observation[None], rewards[t - 1 : t] if t else None)
        actions.append(action[0].clone())
    return torch.stack(actions)


def test_episode_is_theirs(golden: Golden) -> None:
    near(played(golden.policy(), golden), golden.arrays["outputs/episode_actions"])


def test_a_finite_reach_within_the_context_acts_in_constant_time_as_they_do() -> None:
    for name in ("dc", "dc-no-actions"):
        golden = Golden(name, FILES[name])
        policy = golden.policy()
        assert policy.config.layers * (policy.config.window - 1) + 1 <= len(policy.TOKENS) * (policy.context - 1) + 2  # type: ignore[attr-defined]
        near(played(make_actor(policy, "recurrent"), golden), golden.arrays["outputs/episode_actions"])


def test_weights_that_nothing_reads_may_be_there_or_not(golden: Golden) -> None:
    unused = UNUSED.get(golden.name, set())
    assert unused <= golden.weights.keys()
    kept = {key: value for key, value in golden.weights.items() if key not in unused}
    windows, policy = golden.windows(), golden.policy()
    assert torch.equal(from_official(golden.name, kept, golden.config)(windows), policy(windows))
    assert len(kept) == len([key for key, _ in policy.named_parameters()])


def test_other_weights_are_refused(golden: Golden) -> None:
    for name in sorted(golden.weights.keys() - UNUSED.get(golden.name, set())):
        less = {key: value for key, value in golden.weights.items() if key != name}
        with pytest.raises(InputError, match=f"missing: {name}"):
            from_official(golden.name, less, golden.config)
    with pytest.raises(InputError, match="left over: other"):
        from_official(golden.name, golden.weights | {"other": torch.zeros(1)}, golden.config)
    for size in ("width", "layers", "state_size"):
        less = {key: value for key, value in golden.config.items() if key != size}
        with pytest.raises(InputError, match=f"config: '{size}' is missing"):
            from_official(golden.name, golden.weights, less)


def test_one_convformer_is_not_the_other() -> None:
    for name, other in (("dc", "dc-no-actions"), ("dc-no-actions", "dc")):
        golden = Golden(name, FILES[name])
        with pytest.raises(InputError, match=rf"remove_action_tokens: got .*; {name} is the other"):
            from_official(other, golden.weights, golden.config)


# Sizes as published

DIMS = {"Hopper-v5": (11, 3), "Walker2d-v5": (17, 6), "AntMaze_UMaze-v5": (29, 8), "FrankaKitchen-v1": (60, 9)}
TABLES = {
    ("dt", 128): (727_695, 730_008, 733_606, 741_830),
    ("dc", 128): (535_939, 537_478, 539_528, 543_753),
    ("dc", 256): (1_858_307, 1_861_382, 1_865_480, 1_873_929),
    ("dm", 128): (877_315, 878_854, 880_904, 885_129),
    ("dm", 256): (3_155_459, 3_158_534, 3_162_632, 3_171_081),
}
"""Weights of the authors' code."""
TABLES |= {("dc-no-actions", 128): tuple(n - 2_688 for n in TABLES["dc", 128])}
TABLES |= {("dc-no-actions", 256): tuple(n - 5_376 for n in TABLES["dc", 256])}


def left_out(name: str, width: int, s: int, a: int) -> int:
    """Weights that the authors have and nothing reads."""
    if name == "dt":  # one word, and the heads for states and returns
        return width + (width + 1) * s + (width + 1)
    return (a + 1) * width if name == "dc-no-actions" else 0  # the embedding of actions


@pytest.mark.parametrize(("name", "width"), TABLES)
def test_weights_at_the_published_sizes(name: str, width: int) -> None:
    for (env_id, (s, a)), expected in zip(DIMS.items(), TABLES[name, width], strict=True):
        facts = Facts(state_size=s, action_size=a, env_id=env_id)
        changes, _ = read_changes({"sizes": "published", "width": width}, MODELS[name], TrainConfig, facts)
        with torch.device("meta"):
            policy = MODELS[name].policy(MODELS[name].config_for(facts, changes))
        assert policy.parameter_count() + left_out(name, width, s, a) == expected, env_id


def test_the_papers_decision_transformer_is_smaller_by_what_it_does_not_read() -> None:
    assert left_out("dt", 128, 11, 3) == 1_676 and 727_695 - 1_676 == 726_019


@pytest.mark.parametrize("name", FILES)
def test_published_recipe(name: str) -> None:
    for env_id, (s, a) in DIMS.items():
        facts = Facts(state_size=s, action_size=a, env_id=env_id)
        changes, recipe = read_changes({"sizes": "published"}, MODELS[name], TrainConfig, facts)
        config, training = MODELS[name].config_for(facts, changes), TrainConfig(**recipe)
        wide = name != "dt" and env_id == "Hopper-v5"
        assert config.width == (256 if wide else 128) and config.context == (8 if name.startswith("dc") else 20)
        assert config.rtg_scale == (1.0 if name.startswith("dc") and env_id.startswith("AntMaze") else 1000.0)
        assert (config.start, config.padding, config.max_timestep) == ("published", "released", 1000)
        assert training.learning_rate == (1e-4 if wide or name == "dt" else 1e-3)
        assert training.warmup * training.steps == 10_000 and training.steps == 100_000
        assert (training.batch_size, training.weight_decay, training.clip) == (64, 1e-4, 0.25)


def test_the_transformers_returns_of_reacher_have_a_scale_of_their_own() -> None:
    facts = Facts(state_size=11, action_size=2, env_id="Reacher-v5")
    assert read_changes({"sizes": "published"}, MODELS["dt"], TrainConfig, facts)[0]["rtg_scale"] == 10.0


# The released DMM


@pytest.mark.parametrize("name", ["dmm", "dmm-released"])
@pytest.mark.parametrize("env", ["hopper", "antmaze"])
def test_released_dmm(name: str, env: str) -> None:
    golden = Golden(name, f"dmm_released_{env}")
    policy, given = golden.policy(), golden.arrays
    b, k = given["inputs/states"].shape[:2]
    windows = Windows(
        given["inputs/rtg"] * policy.config.rtg_scale,
        given["inputs/states"],
        given["inputs/target"],
        torch.zeros(b, k, dtype=torch.int64),
        torch.ones(b, k, dtype=torch.bool),
    )
    actions = policy(dataclasses.replace(windows, actions=given["inputs/actions"]))
    near(actions, given["outputs/actions"])
    loss = (actions - windows.actions).square().mean()
    assert loss.item() == pytest.approx(float(given["loss"]), rel=1e-4)
    golden.compare_gradients(policy, loss, "grads/")
    assert policy.config.rtg_scale == (1000.0 if env == "hopper" else 1.0)


def test_the_mixer_that_the_release_does_not_store_is_asked_for() -> None:
    golden = Golden("dmm", "dmm_released_antmaze")
    stored = {key: value for key, value in golden.weights.items() if "unregistered" not in key}
    with pytest.raises(InputError, match=r"missing: unregistered/dsm \(the release's state dict does not hold"):
        from_official("dmm", stored, golden.config)
    whole = from_official("dmm", GOLDEN / "dmm_released_antmaze.npz", golden.config)
    assert not whole.blocks[0].local_mixer.linear.weight.requires_grad  # type: ignore[index, union-attr]


# One block of mamba-ssm


@pytest.mark.parametrize("sizes", [{}, {"d_state": 5, "d_conv": 3, "expand": 3}, {"dt_rank": 7}])
def test_a_block_of_mamba_ssm(sizes: dict[str, int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs, x = official_block(24, **sizes), torch.randn(2, 9, 24)
    block = from_official("mamba", theirs.state_dict(), {"d_model": 24, **sizes})
    assert isinstance(block, MambaBlock) and not block.training
    near(block(x), theirs(x))


def test_a_block_of_another_size_is_refused() -> None:
    weights = official_block(24).state_dict()
    with pytest.raises(InputError, match=r"config: 'd_model' is missing, which mamba needs"):
        from_official("mamba", weights, {})
    with pytest.raises(InputError, match="of another shape"):
        from_official("mamba", weights, {"d_model": 24, "d_state": 4})
    with pytest.raises(InputError, match=r"^rank: got 0"):
        from_official("mamba", weights, {"d_model": 24, "dt_rank": 0})
