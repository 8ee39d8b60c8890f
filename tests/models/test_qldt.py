"""QLDT: its critic against a closed form, both stages as a run, and the authors' numbers (`tests/golden/qldt.npz`).

Relabelling itself is tested in `tests/data/test_relabelling.py`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm.data.relabelling import relabel_all
from dmm.data.trajectories import Trajectories
from dmm.data.windows import TransitionWindows
from dmm.errors import InputError
from dmm.models.conservative_q import ConservativeQ, ConservativeQConfig, transitions, with_next_states
from dmm.models.dt import DecisionTransformer, DTConfig
from dmm.models.entry import Facts
from dmm.models.official import from_official
from dmm.models.qldt import QLDTConfig, QLearningDT, observed_values, relabelled, windows
from dmm.models.qldt_maze import TableConfig, TableTransformer
from dmm.models.registry import MODELS, read_changes
from dmm.policy import Policy
from dmm.training import Run, TrainConfig, load_run, train, train_seeds
from dmm.training.loop import Loop
from tests.conftest import tiny_trajectories

GOLDEN = Path(__file__).parents[1] / "golden" / "qldt.npz"
SMALL: dict[str, Any] = {"width": 8, "layers": 1, "context": 4, "batch_size": 6, "log_every": 1, "checkpoint_every": 2}
SMALL |= {"critic_width": 8}
CRITIC: dict[str, Any] = {"warmup": 0.0, "weight_decay": 0.0, "clip": 0.0}
PUBLISHED = {
    "Hopper-v5": (11, 3, 726_275),
    "Walker2d-v5": (17, 6, 727_814),
    "antmaze-umaze-v2": (29, 8, 729_864),
    "kitchen-complete-v0": (60, 9, 734_089),
}


class Recorded:
    """What the authors' maze code computed, and their network with the same weights."""

    def __init__(self) -> None:
        with np.load(GOLDEN) as file:
            self.arrays = {key: file[key] for key in file.files if key != "config"}
            self.sizes = json.loads(str(file["config"]))
        self.module = from_maze(GOLDEN, self.sizes)

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def weights(self) -> dict[str, np.ndarray]:
        prefix = "weights/maze/"
        return {key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)}


def from_maze(weights: Any, sizes: Any) -> TableTransformer:
    return cast(TableTransformer, from_official("qldt", weights, sizes))


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


class TestMaze:
    def test_logits_equal_the_authors(self, recorded: Recorded) -> None:
        rows = recorded["inputs/maze/windows"]
        torch.testing.assert_close(recorded.module(rows), recorded["outputs/maze/action_logits"], rtol=0, atol=1e-5)

    def test_loss_and_gradients_equal_the_authors(self, recorded: Recorded) -> None:
        module = recorded.module
        loss = module.loss(recorded["inputs/maze/windows"], recorded["inputs/maze/targets"])
        torch.testing.assert_close(loss, recorded["loss/maze/action"], rtol=1e-4, atol=0)
        loss.backward()
        own = dict(module.named_parameters())
        official = MODELS["qldt"].official
        assert official is not None
        theirs = {source: own[key].grad for key, source in official.sources(module).items() if isinstance(source, str)}
        names = [key.removeprefix("grads/maze/") for key in recorded.arrays if key.startswith("grads/maze/")]
        assert names
        for name in names:
            expected, found = recorded[f"grads/maze/{name}"], theirs[name]
            assert found is not None and (found - expected).norm() <= 1e-4 * expected.norm(), name

    def test_keys_may_stand_alone_or_behind_their_part(self, recorded: Recorded) -> None:
        rows, weights = recorded["inputs/maze/windows"], recorded.weights()
        flat = {"context": 3, **recorded.sizes["maze"], **recorded.sizes["maze"]["gpt"]}
        for given in (weights, {f"maze/{key}": array for key, array in weights.items()}):
            for sizes in (recorded.sizes, flat):
                assert torch.equal(from_maze(given, sizes)(rows), recorded.module(rows))

    def test_no_output_depends_on_the_kinds_of_tokens(self, recorded: Recorded) -> None:
        weights = recorded.weights()
        weights["seg_emb"] = weights["seg_emb"] + 1
        rows = recorded["inputs/maze/windows"]
        assert torch.equal(from_maze(weights, recorded.sizes)(rows), recorded.module(rows))
        del weights["seg_emb"]
        from_maze(weights, recorded.sizes)

    def test_a_step_sees_its_own_tokens_and_earlier_steps(self, recorded: Recorded) -> None:
        module, rows = recorded.module, recorded["inputs/maze/windows"]
        for place in range(rows.shape[1]):
            for column in range(3):
                changed = rows.clone()
                changed[:, place, column] = (changed[:, place, column] + 1) % 3
                moved = (module(changed) != module(rows)).any(dim=-1)
                assert moved[:, place].all() and not moved[:, :place].any()

    def test_a_short_history_has_the_first_places(self, recorded: Recorded) -> None:
        rows = recorded["inputs/maze/windows"]
        torch.testing.assert_close(recorded.module(rows[:, :2]), recorded.module(rows)[:, :2])

    def test_weights_of_the_authors_maze(self) -> None:
        kinds_of_tokens = 3 * 64  # which nothing reads
        module = TableTransformer(TableConfig(states=36, actions=8))
        assert sum(weight.numel() for weight in module.parameters()) + kinds_of_tokens == 203_968

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"context": None}, r"^context: got None, allowed is a whole number"),
            ({"maze": {"states": 9}}, r"^config: 'actions' is missing, which qldt needs"),
            ({"context": 4}, r"^weights: they are not those of this qldt \(of another shape: pos_emb \(1, 3, \d+\)"),
        ],
    )
    def test_wrong_sizes(self, recorded: Recorded, change: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            from_maze(recorded.weights(), recorded.sizes | change)
        assert "\n" not in str(caught.value)

    def test_wrong_heads_and_rows(self, recorded: Recorded) -> None:
        with pytest.raises(InputError, match=r"^heads: got 3, allowed are divisors of width 64$"):
            TableConfig(states=2, actions=2, heads=3)
        with pytest.raises(InputError, match=r"^rows: got shape \(1, 4, 3\), allowed is \(b, 1 to 3, 3\)$"):
            recorded.module(torch.zeros(1, 4, 3))


LENGTH = 4


def chain(discrete: bool, episodes: int = 400, known: bool = True, lowest: float = -1.0) -> Trajectories:
    """States 0 .. LENGTH in a row, one-hot; right (action 1, or above 0) steps on, left stays; the last step earns 1.

    Episodes of random actions, none below `lowest`, each of which begins anywhere and is cut off after 3 steps.
    """
    rng = np.random.default_rng(0)
    states, actions, rewards, lengths, ended, last = [], [], [], [], [], []
    for _ in range(episodes):
        at, length = int(rng.integers(LENGTH)), 0
        while length < 3 and at < LENGTH:
            action = rng.uniform(lowest, 1)
            states.append(np.eye(LENGTH + 1)[at])
            actions.append(np.eye(2)[int(action > 0)] if discrete else [action])
            at += int(action > 0)
            rewards.append(float(at == LENGTH))
            length += 1
        lengths.append(length)
        ended.append(at == LENGTH)
        last.append(np.eye(LENGTH + 1)[at])
    return Trajectories(
        observations=np.array(states),
        actions=np.array(actions),
        rewards=np.array(rewards),
        starts=np.cumsum(lengths) - lengths,
        lengths=np.array(lengths),
        terminated=np.array(ended),
        dataset_id="test/chain-v0",
        env_id="",
        discrete_actions=discrete,
        last_observations=np.array(last) if known else None,
    )


def trained_critic(data: Trajectories, out: Path, steps: int = 250, **changes: Any) -> ConservativeQ:
    options = CRITIC | {"learning_rate": 5e-3, "batch_size": 64, "width": 32, "target_rate": 0.2} | changes
    run = train(data, "conservative-q", steps=steps, out=out, changes=options, device="cpu", progress=False)
    return cast(ConservativeQ, run.policy)


class TestCritic:
    @pytest.mark.parametrize("known", [True, False])
    def test_it_learns_the_values_of_a_chain(self, tmp_path: Path, known: bool) -> None:
        data = chain(discrete=True, known=known)
        critic = trained_critic(data, tmp_path, conservative=0.0, discount=0.8)
        states = torch.eye(LENGTH + 1)[:LENGTH]
        expected = 0.8 ** torch.arange(LENGTH - 1, -1, -1.0)
        torch.testing.assert_close(critic.value(states), expected, rtol=0, atol=0.06)
        right, left = critic(one_step(states))[:, 0].unbind(dim=-1)[::-1]
        assert (right > left).all()  # which it plays

    def test_and_with_an_actor(self, tmp_path: Path) -> None:
        critic = trained_critic(chain(discrete=False), tmp_path, conservative=0.0, discount=0.8)
        states = torch.eye(LENGTH + 1)[:LENGTH]
        assert (critic(one_step(states)) > 0).all()
        value = critic.value(states, torch.Generator().manual_seed(0))
        torch.testing.assert_close(value, 0.8 ** torch.arange(LENGTH - 1, -1, -1.0), rtol=0, atol=0.15)

    @pytest.mark.parametrize("discrete", [True, False])
    def test_it_doubts_actions_that_the_data_do_not_show(self, tmp_path: Path, discrete: bool) -> None:
        data, states, doubts = chain(discrete, lowest=0.1), torch.eye(LENGTH + 1)[:LENGTH], []
        unseen, seen = ([1.0, 0.0], [0.0, 1.0]) if discrete else ([-0.8], [0.6])
        for weight in (0.0, 1.0):
            critic = trained_critic(data, tmp_path / f"{weight}", 60, conservative=weight, temperature=1.0)
            z = (states - critic.state_mean) / critic.state_std
            pairs = (torch.cat([z, torch.tensor([each]).expand(LENGTH, -1)], dim=-1) for each in (seen, unseen))
            high, low = (torch.stack([net(pair) for net in critic.critics]).mean().item() for pair in pairs)
            doubts.append(high - low)
        assert doubts[1] > doubts[0] + 0.5

    def test_the_terms_are_their_formulas(self) -> None:
        critic = small_critic(discrete=True)
        batch = drawn(chain(discrete=True))
        c, found = critic.config, critic.loss(batch)

        def worth(nets: Any, states: Tensor) -> list[Tensor]:
            """Of each net: `(a, b)`."""
            pairs = [torch.cat([states[:, 0], torch.eye(2)[[a]].expand(len(states), -1)], dim=-1) for a in range(2)]
            return [torch.stack([net(pair)[:, 0] for pair in pairs]) for net in nets]

        q = worth(critic.critics, batch.states)
        value = torch.minimum(*worth(critic.targets, batch.next_states)).amax(dim=0)
        aim = batch.rewards[:, 0, 0] / c.rtg_scale + c.discount * (1 - batch.ended[:, 0, 0]) * value
        done = [torch.where(batch.actions[:, 0, 1] > 0, own[1], own[0]) for own in q]
        bellman = sum(((each - aim) ** 2).mean() for each in done)
        soft = [c.temperature * torch.logsumexp(own / c.temperature, dim=0) for own in q]
        conservative = c.conservative * sum((s - d).mean() for s, d in zip(soft, done, strict=True))
        torch.testing.assert_close(found["bellman"], torch.as_tensor(bellman))
        torch.testing.assert_close(found["conservative"], torch.as_tensor(conservative))
        assert found["actor"] == 0
        assert set(found) == set(critic.terms)

    def test_gradients_of_each_term_reach_its_own_part(self) -> None:
        critic, batch = small_critic(discrete=False), drawn(chain(discrete=False))
        for term, reached in (("bellman", "critics"), ("conservative", "critics"), ("actor", "actor")):
            names, weights = zip(*critic.named_parameters(), strict=True)
            trained = [weight for weight in weights if weight.requires_grad]
            slopes = torch.autograd.grad(critic.loss(batch)[term], trained, allow_unused=True, materialize_grads=True)
            moved = {name.split(".")[0] for name, slope in zip(names, slopes, strict=False) if slope.any()}
            assert moved == {reached}, term

    def test_an_action_far_from_the_edge_has_the_density_of_its_change_of_variables(self) -> None:
        critic = small_critic(discrete=False)
        z = torch.randn(3, LENGTH + 1)
        actions, log_density = critic._drawn(z, 5, torch.Generator().manual_seed(0))
        mean, log_std = critic.actor(z)[:, None].chunk(2, dim=-1)
        gaussian = torch.distributions.Normal(mean, log_std.exp())
        squashed = torch.distributions.TransformedDistribution(gaussian, [torch.distributions.TanhTransform()])
        torch.testing.assert_close(log_density, squashed.log_prob(actions).sum(dim=-1), rtol=1e-4, atol=1e-4)

    def test_targets_go_part_of_the_way(self) -> None:
        critic = small_critic(discrete=True, target_rate=0.25)
        before = [weight.clone() for weight in critic.targets.parameters()]
        critic.after_update()
        now = zip(before, critic.targets.parameters(), critic.critics.parameters(), strict=True)
        for old, new, weight in now:
            assert not torch.equal(old, weight)
            torch.testing.assert_close(new, 0.75 * old + 0.25 * weight)

    def test_values_are_in_the_unit_of_the_rewards(self) -> None:
        one, other = small_critic(discrete=False), small_critic(discrete=False, rtg_scale=10.0)
        other.load_state_dict(one.state_dict())
        data = chain(discrete=False)
        np.testing.assert_allclose(observed_values(other, data), 10 * observed_values(one, data), rtol=1e-5)

    def test_batches_in_front_are_each_alone(self) -> None:
        critic = small_critic(discrete=True)
        batch = drawn(chain(discrete=True), lead=3)
        together = critic.loss(batch)
        for row in range(3):
            for name, alone in critic.loss(batch.map(lambda field, row=row: field[row])).items():  # type: ignore[misc]
                torch.testing.assert_close(together[name][row], alone)

    def test_several_seeds_are_not_one_program(
        self, trajectories: Trajectories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options: Any = {"changes": {"width": 8}, "device": "cpu", "progress": False, "workers": 1}
        train_seeds(trajectories, "conservative-q", seeds=(0, 1), steps=2, out=tmp_path, **options)
        assert "one after the other: ConservativeQ moves weights that are not trained" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("field", "value", "allowed"),
        [
            ("width", 0, "at least 1"),
            ("samples", 0, "at least 1"),
            ("discount", 1.5, "above 0 and at most 1"),
            ("target_rate", 0.0, "above 0 and at most 1"),
            ("temperature", 0.0, "a positive number"),
            ("conservative", -1.0, "0 or more"),
        ],
    )
    def test_wrong_field_is_named(self, field: str, value: Any, allowed: str) -> None:
        with pytest.raises(InputError, match=f"^{field}: got .*, allowed is {re.escape(allowed)}$"):
            ConservativeQConfig(**({"state_size": 2, "action_size": 1} | {field: value}))


def small_critic(discrete: bool, **changes: Any) -> ConservativeQ:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"state_size": LENGTH + 1, "action_size": 2 if discrete else 1, "width": 8}
        critic = ConservativeQ(ConservativeQConfig(**(sizes | changes)))
    with torch.no_grad():
        for weight in critic.targets.parameters():
            weight.mul_(0.5)  # so that targets are not the critics
    critic.discrete_actions = discrete
    return critic


def drawn(data: Trajectories, lead: int = 0) -> TransitionWindows:
    sampler = transitions(data, ConservativeQConfig(state_size=LENGTH + 1, action_size=data.action_size), "cpu")
    index = sampler.draw(max(lead, 1), 16, torch.Generator().manual_seed(0))
    return cast(TransitionWindows, sampler.gather(index if lead else index[0]))


def one_step(states: Tensor) -> Any:
    parts = {"timesteps": torch.zeros(len(states), 1).long(), "mask": torch.ones(len(states), 1).bool()}
    zeros = torch.zeros(len(states), 1, 1)
    more = {name: zeros for name in ("returns_to_go", "actions", "rewards", "ended")}
    return TransitionWindows(states=states[:, None], next_states=states[:, None], **more, **parts)


class TestNextStates:
    def test_where_they_are_not_known_an_episode_that_was_cut_off_loses_a_step(self) -> None:
        whole, cut = chain(discrete=True), chain(discrete=True, known=False)
        kept = with_next_states(cut)
        shorter = whole.lengths - ~whole.terminated
        assert kept.lengths.tolist() == shorter[shorter > 0].tolist()
        assert with_next_states(whole) is whole
        following, ended = kept.next_observations(), kept.ended()
        row = np.arange(whole.transitions) - np.repeat(whole.starts, whole.lengths)
        known = row < np.repeat(shorter, whole.lengths)
        expected = whole.next_observations()[known]
        assert np.array_equal(following[~ended], expected[~ended])
        assert np.array_equal(kept.observations, whole.observations[known])
        assert ended.sum() == whole.terminated.sum()

    def test_without_any_it_says_so(self) -> None:
        data = dataclasses.replace(tiny_trajectories(lengths=(1, 1)), last_observations=None)
        with pytest.raises(
            InputError, match=r"^last_observations: 'tiny/linear-v0' has none, and no step with a known"
        ):
            transitions(data, ConservativeQConfig(state_size=4, action_size=2), "cpu")


def quick(data: Trajectories, out: Path, model: str = "qldt", steps: int = 8, **more: Any) -> Run:
    changes = SMALL | more.pop("changes", {})
    known = {field.name for kind in (MODELS[model].config, TrainConfig) for field in dataclasses.fields(kind)}
    changes = {name: value for name, value in changes.items() if name in known}
    return train(data, model, steps=steps, out=out, changes=changes, device="cpu", progress=False, **more)


def same(one: Policy, other: Policy) -> bool:
    tensors = dict(other.named_parameters()) | dict(other.named_buffers())
    return all(torch.equal(t, tensors[name]) for name, t in [*one.named_parameters(), *one.named_buffers()])


class TestStages:
    def test_the_critic_is_a_run_in_the_runs_folder_and_gives_the_values_again(
        self, trajectories: Trajectories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = quick(trajectories, tmp_path)
        critic = load_run(tmp_path / "conservative-q")
        assert (critic.step, critic.info["model"], critic.policy.config.width) == (8, "conservative-q", 8)
        made = relabel_all(trajectories, observed_values(cast(ConservativeQ, critic.policy), trajectories))
        count, n = made.relabelled_steps(), trajectories.transitions
        assert capsys.readouterr().err == f"dmm: relabelled {count:,} of {n:,} steps ({100 * count / n:.1f} %)\n"
        there = cast(QLearningDT, load_run(tmp_path).policy)
        assert there.relabelled_share == run.policy.relabelled_share == torch.tensor(count / n)

    def test_the_transformer_is_trained_on_what_was_relabelled(
        self, trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        high, seen = np.full(trajectories.transitions, 100.0), []
        monkeypatch.setattr("dmm.models.qldt.observed_values", lambda critic, data: high)
        loss = QLearningDT.loss

        def watch(policy: QLearningDT, batch: Any) -> Any:
            seen.append(batch.returns_to_go[..., -1, 0].flatten())
            return loss(policy, batch)

        monkeypatch.setattr(QLearningDT, "loss", watch)
        run = quick(trajectories, tmp_path)
        ends = relabel_all(trajectories, high).relabelled_returns()
        assert np.isin(torch.cat(seen).numpy().round(3), ends.astype(np.float32).round(3)).all()
        assert torch.cat(seen).max() > 100
        others = trajectories.transitions - trajectories.episodes  # all but last steps
        assert run.policy.relabelled_share == torch.tensor(others / trajectories.transitions)

    def test_a_critic_that_expects_nothing_leaves_a_decision_transformer(
        self, trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nothing = np.full(trajectories.transitions, -np.inf)
        monkeypatch.setattr("dmm.models.qldt.observed_values", lambda critic, data: nothing)
        run, dt = quick(trajectories, tmp_path / "qldt"), quick(trajectories, tmp_path / "dt", "dt")
        assert run.policy.relabelled_share == 0
        assert all(
            torch.equal(weight, run.policy.state_dict()[name]) for name, weight in dt.policy.state_dict().items()
        )
        np.testing.assert_array_equal(run.log["loss"], dt.log["loss"])

    def test_discrete_actions(self, tmp_path: Path) -> None:
        data = chain(discrete=True, episodes=40)
        run = quick(data, tmp_path)
        assert run.policy.discrete_actions and load_run(tmp_path / "conservative-q").policy.discrete_actions

    @pytest.mark.parametrize("stopped", [("conservative-q", 5), ("qldt", 3), ("qldt", 7)])
    def test_stopped_in_either_stage_it_goes_on_to_the_same_bits(
        self, trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: tuple[str, int]
    ) -> None:
        write, begin = Loop._write, Loop.__init__

        def often(loop: Loop, *arguments: Any) -> None:
            begin(loop, *arguments)
            loop.config = dataclasses.replace(loop.config, log_every=1, checkpoint_every=2)  # the critic's, too

        def stop(loop: Loop) -> None:
            write(loop)
            if (loop.runs[0].info["model"], loop.step) == stopped:  # behind a checkpoint
                raise KeyboardInterrupt

        monkeypatch.setattr(Loop, "__init__", often)
        whole = quick(trajectories, tmp_path / "whole")
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "_write", stop)
            with pytest.raises(KeyboardInterrupt):
                quick(trajectories, tmp_path / "run")
        here = tmp_path / "run" / ("conservative-q" if stopped[0] == "conservative-q" else "")
        assert load_run(here).step == stopped[1] - 1
        again = quick(trajectories, tmp_path / "run", resume=True)
        assert same(again.policy, whole.policy)
        assert same(*(load_run(tmp_path / name / "conservative-q").policy for name in ("run", "whole")))

    def test_a_run_that_goes_on_for_longer_keeps_its_critic(self, trajectories: Trajectories, tmp_path: Path) -> None:
        quick(trajectories, tmp_path)
        critic = load_run(tmp_path / "conservative-q")
        longer = quick(trajectories, tmp_path, steps=12, resume=True)
        assert longer.step == 12 and same(load_run(tmp_path / "conservative-q").policy, critic.policy)
        assert load_run(tmp_path / "conservative-q").step == 8

    def test_targets_are_kept_with_the_critic(self, trajectories: Trajectories, tmp_path: Path) -> None:
        critic = quick(trajectories, tmp_path, "conservative-q").policy
        there = load_run(tmp_path).policy
        assert same(there, critic)
        pairs = zip(there.targets.parameters(), there.critics.parameters(), strict=True)  # type: ignore[union-attr, operator]
        assert not any(torch.equal(target, weight) for target, weight in pairs)


class TestModel:
    def test_the_network_is_the_decision_transformers(self) -> None:
        with torch.random.fork_rng():
            made = []
            for kind, config in ((QLearningDT, QLDTConfig), (DecisionTransformer, DTConfig)):
                torch.manual_seed(0)
                made.append(kind(config(state_size=4, action_size=2)))  # type: ignore[arg-type]
        qldt, dt = made
        assert all(torch.equal(weight, qldt.state_dict()[name]) for name, weight in dt.state_dict().items())
        assert qldt.parameter_count() == dt.parameter_count()
        assert type(qldt).forward is DecisionTransformer.forward and type(qldt).act is DecisionTransformer.act

    @pytest.mark.parametrize("env_id", PUBLISHED)
    def test_weights_at_the_published_sizes(self, env_id: str) -> None:
        state_size, action_size, weights = PUBLISHED[env_id]
        facts, model = Facts(state_size=state_size, action_size=action_size, env_id=env_id), MODELS["qldt"]
        changes, recipe = read_changes({"sizes": "published"}, model, TrainConfig, facts)
        config = model.config_for(facts, changes)
        assert model.policy(config).parameter_count() == weights
        assert (config.last_reward, config.drawn, config.critic_steps) == ("dropped", "last", 500_000)
        assert (recipe["steps"], recipe["batch_size"], recipe["learning_rate"], recipe["clip"]) == (
            100_000,
            64,
            1e-4,
            0.25,
        )

    def test_both_switches_reach_the_data(self, trajectories: Trajectories) -> None:
        critic = small_critic_for(trajectories)
        for last_reward in ("kept", "dropped"):
            config = QLDTConfig(state_size=4, action_size=2, context=3, last_reward=last_reward, drawn="last")
            made = relabelled(trajectories, config, [critic])
            values = observed_values(critic, trajectories)
            expected = relabel_all(trajectories, values, last_reward=last_reward)
            assert np.array_equal(made.lifts, expected.lifts)  # type: ignore[attr-defined, arg-type]
            assert windows(made, config, "cpu").drawn == "last"

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("last_reward", "lost", "got 'lost', allowed are kept, dropped"),
            ("drawn", "middle", "got 'middle', allowed are first, last"),
            ("critic_steps", -1, "got -1, allowed is a whole number of at least 0"),
            ("critic_width", 0, "got 0, allowed is at least 1"),
            ("critic_batch", 0, "got 0, allowed is at least 1"),
            ("conservative", -0.5, "got -0.5, allowed is 0 or more"),
            ("critic_rate", 0.0, "got 0, allowed is a positive number"),
            ("critic_target_rate", 1.5, "got 1.5, allowed is above 0 and at most 1"),
        ],
    )
    def test_wrong_field_is_named_before_anything_is_trained(self, field: str, value: Any, message: str) -> None:
        with pytest.raises(InputError, match=f"^{field}: {re.escape(message)}") as caught:
            QLDTConfig(**({"state_size": 4, "action_size": 2} | {field: value}))
        assert "\n" not in str(caught.value)


def small_critic_for(data: Trajectories) -> ConservativeQ:
    config = ConservativeQConfig(state_size=data.state_size, action_size=data.action_size, width=8, rtg_scale=5.0)
    return ConservativeQ(config)
