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

from dmm.data.trajectories import Trajectories
from dmm.data.windows import TransitionWindows, Windows
from dmm.draws import streams, uniform
from dmm.errors import InputError
from dmm.inspection.reach import random_windows, reach
from dmm.models.edt import (
    MODEL,
    Candidates,
    EDTConfig,
    ElasticDecisionTransformer,
    Search,
    decode_return,
    encode_return,
    return_probabilities,
)
from dmm.models.entry import Facts
from dmm.models.official import from_official
from dmm.models.registry import read_changes
from dmm.policy import Outcome, Wanted, next_window
from dmm.training import TrainConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "edt.npz"
SMALL: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 5, "width": 8, "layers": 2, "heads": 2}
SMALL |= {"dropout": 0.0, "rtg_scale": 10.0, "return_low": -3.0, "return_high": 20.0, "return_bins": 12}
PUBLISHED = {
    "Hopper-v5": (11, 3, 14_756_973),
    "Walker2d-v5": (17, 6, 14_766_267),
    "Ant-v4": (111, 8, 14_865_453),
    "antmaze-umaze-v2": (29, 8, 14_780_747),
    "kitchen-complete-v0": (60, 9, 14_813_855),
}
"""State size, action size and the authors' weights, those of their unused head and embedding of rewards among them."""


def small(**changes: Any) -> ElasticDecisionTransformer:
    """In float64, with weights that are strong enough for every dependence to show, and moments of states."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = ElasticDecisionTransformer(EDTConfig(**(SMALL | changes))).double()
        for weight in policy.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
    size = policy.state_size
    policy.set_state_moments(torch.linspace(-1, 1, size), torch.linspace(0.5, 2, size))
    return policy.eval()


def history(steps: int, n: int = 3, seed: int = 1) -> Windows:
    """The last steps of n episodes, the last action not known, in float64."""
    draw = torch.Generator().manual_seed(seed)
    actions = torch.rand(n, steps, 2, generator=draw, dtype=torch.float64)
    actions[:, -1] = 0
    return Windows(
        returns_to_go=20 * torch.rand(n, steps, 1, generator=draw, dtype=torch.float64),
        states=torch.randn(n, steps, 4, generator=draw, dtype=torch.float64),
        actions=actions,
        timesteps=torch.arange(7, 7 + steps).repeat(n, 1),
        mask=torch.ones(n, steps, dtype=torch.bool),
    )


class Recorded:
    """What the authors' code computed, and our policy with the same weights."""

    def __init__(self) -> None:
        with np.load(GOLDEN) as file:
            self.arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
            self.sizes = json.loads(str(file["config"]))
        self.policy = cast(ElasticDecisionTransformer, from_official("edt", GOLDEN, self.sizes))
        self.scale = self.sizes["rtg_scale"]

    def __getitem__(self, key: str) -> Tensor:
        return self.arrays[key]

    def windows(self, side: str) -> TransitionWindows:
        """Raw, as a sampler gives them; their states are z-scored, and the policy has no moments."""
        given = {
            field.name: self.arrays.get(f"inputs{side}/{field.name}", torch.empty(0))
            for field in dataclasses.fields(TransitionWindows)
        }
        given |= {name: given[name] * self.scale for name in ("returns_to_go", "rewards")}
        return TransitionWindows(**{**given, "ended": torch.zeros_like(given["rewards"])})

    def history(self, t: int) -> Windows:
        """Of the recorded search at time t, whose return places are 0."""
        k = self.policy.context
        window = slice(max(0, t - k + 1), t + 1)
        actions = self["search/actions"][window].clone()
        actions[-1] = 0
        times = torch.arange(t + 1)[None, window]
        return Windows(
            returns_to_go=torch.zeros(1, len(actions), 1),
            states=self["search/states"][None, window],
            actions=actions[None],
            timesteps=times,
            mask=torch.ones_like(times, dtype=torch.bool),
        )


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class TestOfficial:
    @pytest.mark.parametrize("side", ["", "_left"])
    def test_heads_equal_the_authors(self, recorded: Recorded, side: str) -> None:
        windows = recorded.windows(side)
        assert bool(windows.mask.all()) is False
        found, real = recorded.policy.predict(windows), windows.mask
        for ours, theirs in zip(found, ("actions", "states", "returns", "return_logits"), strict=True):
            near(ours[real], recorded[f"outputs{side}/{theirs}"][real])
        assert torch.equal(recorded.policy(windows), found.actions)

    @pytest.mark.parametrize("side", ["", "_left"])
    def test_losses_equal_the_authors(self, recorded: Recorded, side: str) -> None:
        found = recorded.policy.loss(recorded.windows(side))
        assert tuple(found) == recorded.policy.terms
        weights = {"action": 1.0, "state": 1.0, "expectile": 0.5, "cross_entropy": 0.001}
        for name, weight in weights.items():
            torch.testing.assert_close(found[name], weight * recorded[f"loss/{name}"], rtol=1e-4, atol=0)
        torch.testing.assert_close(sum(found.values()), recorded["loss/total"], rtol=1e-4, atol=0)

    def test_gradients_equal_the_authors(self, recorded: Recorded) -> None:
        assert MODEL.official is not None
        ours = {theirs: own for own, theirs in MODEL.official.sources(recorded.policy).items()}
        weights = dict(recorded.policy.named_parameters())
        keys = [key.removeprefix("grads/") for key in recorded.arrays if key.startswith("grads/")]
        assert len(keys) == 3
        total = sum(recorded.policy.loss(recorded.windows("")).values())
        found = torch.autograd.grad(cast(Tensor, total), [weights[ours[key]] for key in keys])
        for key, gradient in zip(keys, found, strict=True):
            expected = recorded[f"grads/{key}"]
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()), msg=key)

    def test_bins_and_what_is_drawn_from_equal_the_authors(self, recorded: Recorded) -> None:
        config = recorded.policy.config
        bins = encode_return(recorded["inputs/returns_to_go"] * recorded.scale, config)
        assert bins.dtype == torch.int64 and torch.equal(bins.float(), recorded["returns/bins"])
        decoded = decode_return(torch.arange(config.return_bins), config)
        near(decoded / recorded.scale, recorded["returns/decoded"])
        assert torch.equal(encode_return(decoded, config).float(), recorded["returns/encoded_again"])
        for weight in (15, 1):
            found = return_probabilities(
                recorded["outputs/return_logits"], dataclasses.replace(config, expert_weight=float(weight))
            )
            near(found, recorded[f"returns/probabilities_{weight}"])

    def test_search_equals_the_authors(self, recorded: Recorded) -> None:
        k = recorded.policy.context
        for row, t in enumerate(recorded["search/times"].tolist()):
            windows = recorded.history(t)
            found, theirs = recorded.policy.search(windows), recorded["search/candidate_returns"][row]
            tried = theirs > -999
            assert found.lengths.tolist() == [min(t + 1, k) - i for i in tried.nonzero()[:, 0].tolist()]
            near(found.estimates[:, 0] / recorded.scale, theirs[tried])
            near(found.actions[:, 0], recorded["search/candidate_actions"][row][tried])
            near(found.action[0], recorded["search/action"][row])
            start = k - int(recorded["search/history"][row])
            assert found.lengths[found.chosen[0]] == min(t + 1, k) - start
            near(Candidates(recorded.policy, windows, None, every=False).best(), found.action)

    def test_weights_of_other_sizes_are_read(self) -> None:
        policy = small(layers=3, width=12, heads=3, return_bins=7, context=9, max_timestep=40).float()
        assert MODEL.official is not None
        own = policy.state_dict()
        theirs = {theirs: own[ours] for ours, theirs in MODEL.official.sources(policy).items()}
        theirs |= {"predict_reward.weight": torch.zeros(1, 12), "embed_reward.bias": torch.zeros(12)}
        config = policy.config
        sizes = dataclasses.asdict(config) | {"blocks": 3, "bins": 7}
        sizes |= {"return_min": config.return_low / 10, "return_max": config.return_high / 10}
        moments = {"state_mean": policy.state_mean, "state_std": policy.state_std}
        read = from_official("edt", theirs, sizes | moments)
        windows = history(9).map(lambda field: field.float() if field.is_floating_point() else field)
        torch.testing.assert_close(read(windows), policy(windows))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"heads": 5}, "heads: got 5, allowed are divisors of width 32"),
            ({"blocks": 1}, "left over: transformer.1.attention.k_net.bias"),
            ({"bins": 11}, "predict_rtg.weight (12, 32) where bins_head.weight is (11, 32)"),
            ({"return_max": -1.0}, "return_high: got -1000, allowed is more than return_low (-20.2723)"),
        ],
    )
    def test_wrong_sizes_are_named(self, recorded: Recorded, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            from_official("edt", GOLDEN, recorded.sizes | changes)
        assert "\n" not in str(caught.value)


class TestBins:
    def test_released_bins_come_back_one_lower(self) -> None:
        config = MODEL.make_config(11, 3, "Hopper-v5")
        bins = torch.arange(60)
        assert torch.equal(encode_return(decode_return(bins, config), config), (bins - 1).clamp(min=0))

    @pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "antmaze-umaze-v2", ""])
    def test_corrected_bins_come_back(self, env_id: str) -> None:
        config = MODEL.make_config(11, 3, env_id, bins="corrected")
        bins = torch.arange(60)
        assert torch.equal(encode_return(decode_return(bins, config), config), bins)
        assert decode_return(bins, config).max() <= config.return_high
        edges = torch.tensor([config.return_low, config.return_high, config.return_low - 5, config.return_high + 5])
        assert encode_return(edges, config).tolist() == [0, 59, 0, 59]

    @pytest.mark.parametrize(("env_id", "returns"), [("antmaze-umaze-v2", 2), ("kitchen-complete-v0", 5)])
    @pytest.mark.parametrize("bins", ["released", "corrected"])
    def test_returns_of_mazes_and_the_kitchen_have_bins_of_their_own(
        self, env_id: str, returns: int, bins: str
    ) -> None:
        config = MODEL.make_config(29, 8, env_id, bins=bins, rtg_scale=1.0)
        found = encode_return(torch.arange(float(returns)), config)
        assert len(found.unique()) == returns
        released = dataclasses.replace(config, return_low=0.0, return_high=700.0)
        assert returns == 5 or len(encode_return(torch.arange(2.0), released).unique()) == 1

    def test_bins_do_not_depend_on_the_scale(self) -> None:
        returns = torch.linspace(-5, 25, 200)
        found = [encode_return(returns, EDTConfig(**SMALL | {"rtg_scale": scale})) for scale in (1.0, 8.0)]
        assert torch.equal(*found)

    def test_low_bins_are_not_drawn(self) -> None:
        config = EDTConfig(**SMALL | {"return_bins": 60})
        flat = return_probabilities(torch.zeros(60), config)
        assert (flat == 0).sum() == 9  # of 60, those below the quantile at place 0.15 * 59 = 8.85
        assert (flat * torch.arange(60)).sum().item() == pytest.approx(57.1, abs=0.05)


class TestReach:
    def test_a_return_reaches_its_own_action_alone_but_for_the_first(self) -> None:
        policy = small(context=6)
        seen = reach(policy).seen
        past = torch.ones(6, 6, dtype=torch.bool).tril()
        own = torch.eye(6, dtype=torch.bool)
        own[:, 0] = True
        assert torch.equal(seen["returns_to_go"], own)
        assert torch.equal(seen["states"], past) and torch.equal(seen["actions"], past.tril(-1))
        for name in ("rewards", "next_states", "ended"):
            assert not seen[name].any()

    def test_with_padding_the_first_return_is_that_of_the_first_real_step(self) -> None:
        policy, real = small(context=6), 4
        windows = random_windows(policy, 6, torch.Generator().manual_seed(0))
        whole = windows.map(lambda field: field[:, :real])
        for behind in (True, False):
            place = slice(0, real) if behind else slice(6 - real, 6)

            def laid(field: Tensor, part: Tensor, place: slice = place) -> Tensor:
                made = torch.zeros_like(field)
                made[:, place] = part
                return made

            parts = {
                field.name: laid(getattr(windows, field.name), getattr(whole, field.name))
                for field in dataclasses.fields(windows)
            }
            padded = type(windows)(**parts)
            for ours, expected in zip(policy.predict(padded), policy.predict(whole), strict=True):
                torch.testing.assert_close(ours[:, place], expected)
            found = policy.loss(padded)  # type: ignore[arg-type]
            for name, term in policy.loss(whole).items():  # type: ignore[arg-type]
                torch.testing.assert_close(found[name], term)

    def test_estimates_and_logits_see_no_return_but_the_first(self) -> None:
        policy = small()
        windows = history(5)
        returns = windows.returns_to_go.requires_grad_()
        found = policy.predict(windows)
        for head in (found.estimates, found.logits):
            slope = torch.autograd.grad(head[:, -1].sum(), returns, retain_graph=True)[0]
            assert bool((slope[:, 0] != 0).all()) and not slope[:, 1:].any()


class TestLoss:
    def test_terms_are_those_of_their_definition(self) -> None:
        policy = small()
        windows = cast(TransitionWindows, random_windows(policy, 5, torch.Generator().manual_seed(0), count=4))
        windows = dataclasses.replace(windows, mask=torch.arange(5) < torch.tensor([[5], [2], [4], [1]]))
        found, real = policy.predict(windows), windows.mask
        next_states = (windows.next_states - policy.state_mean) / policy.state_std
        gap = (windows.returns_to_go / 10 - found.estimates)[real]
        bins = encode_return(windows.returns_to_go, policy.config)[real][:, 0]
        expected = {
            "action": (found.actions - windows.actions)[real].square().mean(),
            "state": (found.next_states - next_states)[real].square().mean(),
            "expectile": 0.5 * ((0.99 * (gap > 0) + 0.01 * (gap <= 0)) * gap**2).mean(),
            "cross_entropy": 0.001 * torch.nn.functional.cross_entropy(found.logits[real], bins),
        }
        for name, term in policy.loss(windows).items():
            torch.testing.assert_close(term, expected[name])

    def test_the_estimate_is_an_expectile(self) -> None:
        """Of returns 0 and 1 as often, the one that makes the loss least is 0.99: far above their mean."""
        policy = small()
        windows = cast(TransitionWindows, random_windows(policy, 1, torch.Generator().manual_seed(0), count=2))
        same = windows.map(lambda field: field[:1].expand_as(field).contiguous())
        windows = dataclasses.replace(same, returns_to_go=torch.tensor([[[0.0]], [[10.0]]], dtype=torch.float64))
        policy.estimate_head.weight.data.zero_()
        losses = []
        for guess in torch.linspace(0, 1, 101):
            policy.estimate_head.bias.data.fill_(float(guess))
            losses.append(policy.loss(windows)["expectile"].item())
        assert int(np.argmin(losses)) == 99

    def test_draws_are_by_trajectory_and_padded_on_the_right(self, trajectories: Trajectories) -> None:
        config = MODEL.make_config(4, 2, context=4)
        sampler: Any = MODEL.sampler(trajectories, config, "cpu")
        drawn = sampler.draw(1, 5000, torch.Generator().manual_seed(0))[0]
        episode = np.searchsorted(trajectories.starts, drawn.numpy(), side="right") - 1
        shares = np.bincount(episode, minlength=5) / 5000
        assert abs(shares - 0.2).max() < 5 * (0.16 / 5000) ** 0.5  # five standard errors
        windows = sampler.gather(drawn)
        assert isinstance(windows, TransitionWindows)
        full = torch.from_numpy(trajectories.lengths)[torch.from_numpy(episode)] >= 4
        assert bool(windows.mask[full].all()) and not bool(windows.mask[~full].all(dim=1).any())
        assert bool(windows.mask[:, 0].all()) and torch.equal(windows.mask, windows.mask.cummin(dim=1).values)


def by_definition(policy: ElasticDecisionTransformer, windows: Windows, draws: Tensor) -> Search:
    """The search by two whole forwards for every history."""
    m = windows.mask.shape[1]
    bins_of, estimates, actions = [], [], []

    def drawn(logits: Tensor, number: Tensor) -> Tensor:
        below = return_probabilities(logits, policy.config).cumsum(dim=-1)
        return torch.searchsorted(below / below[:, -1:], number[:, None].to(below), right=True)[:, 0]

    lengths = list(range(m, 0, -2))
    for place, length in enumerate(lengths):
        part = windows.map(lambda field, length=length: field[:, m - length :])
        logits = policy.predict(part).logits
        bins_of = [drawn(logits[:, 0], draws[:, place, 0])]
        if length > 1:
            bins_of.append(drawn(logits[:, -1], draws[:, place, 1]))
        returns = torch.full_like(part.returns_to_go, 1e3)  # of the others, which nothing sees
        for where, bins in zip((0, -1), bins_of, strict=False):
            returns[:, where, 0] = decode_return(bins, policy.config).double()
        found = policy.predict(dataclasses.replace(part, returns_to_go=returns))
        estimates.append(found.estimates[:, -1, 0] * policy.config.rtg_scale)
        actions.append(found.actions[:, -1])
    kept = torch.stack(estimates)
    return Search(torch.tensor(lengths), kept, torch.stack(actions), kept.argmax(dim=0))


def numbers(n: int, h: int, seed: int = 3) -> Tensor:
    return torch.rand(n, h, 2, generator=torch.Generator().manual_seed(seed))


class TestSearch:
    @pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("changes", [{}, {"layers": 1}, {"bins": "corrected"}], ids=str)
    def test_it_is_two_forwards_for_each_history(self, steps: int, changes: dict[str, Any]) -> None:
        policy, windows, draws = small(**changes), history(steps), numbers(3, (steps + 1) // 2)
        with torch.no_grad():
            found, expected = policy.search(windows, draws), by_definition(policy, windows, draws)
        for field in dataclasses.fields(Search):
            torch.testing.assert_close(getattr(found, field.name), getattr(expected, field.name))

    @pytest.mark.parametrize("n", [1, 40])
    def test_what_acting_leaves_out_does_not_matter(self, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """In several groups of attention, with a pass for the chosen histories alone or over all of them."""
        policy, windows, draws = small(context=17), history(17, n), numbers(n, 9)
        expected = by_definition(policy, windows, draws)
        assert n == 1 or len(expected.chosen.unique()) > 1
        for most in (0, 2**40):
            monkeypatch.setattr("dmm.models.edt.SMALL", most)
            with torch.no_grad():
                torch.testing.assert_close(Candidates(policy, windows, draws, every=False).best(), expected.action)
                torch.testing.assert_close(policy.search(windows, draws).actions, expected.actions)

    def test_padding_and_later_steps_are_not_seen(self) -> None:
        policy, windows = small(), history(3)
        longer = windows.map(lambda field: torch.cat([torch.zeros_like(field[:, :2]), field], dim=1))
        for field in dataclasses.fields(Search):
            pair = [getattr(policy.search(each, numbers(3, 2)), field.name) for each in (windows, longer)]
            torch.testing.assert_close(*pair)

    def test_the_return_asked_for_reaches_the_action_through_one_draw(self) -> None:
        """How little a target matters, measured: it moves no estimate, and an action only where it moves a draw."""
        policy, windows = small(context=9), history(9, n=200)
        draws = numbers(200, 5)
        asked = [dataclasses.replace(windows, returns_to_go=torch.full_like(windows.returns_to_go, r)) for r in (0, 20)]
        low, high = (policy.search(each, draws) for each in asked)
        torch.testing.assert_close(low.estimates, high.estimates, rtol=0, atol=0)
        assert torch.equal(low.chosen, high.chosen)
        assert torch.equal(low.actions[-1], high.actions[-1])  # after the present step alone
        moved = (low.actions != high.actions).any(dim=-1).double().mean(dim=1)
        assert 0 < moved[0] < 1  # not none, and not all
        whole = [policy(each)[:, -1] for each in asked]
        assert bool((whole[0] != whole[1]).any(dim=-1).all())  # without a draw between, every action answers to it

    @pytest.mark.parametrize(
        ("windows", "draws", "message"),
        [
            (dataclasses.replace(history(4), mask=torch.zeros(3, 4).bool()), None, "windows: got rows of [0] real"),
            (
                dataclasses.replace(history(4), mask=torch.arange(4) >= torch.tensor([[0], [1], [3]])),
                None,
                "windows: got rows of [1, 3, 4] real steps, allowed are rows of as many steps each",
            ),
            (dataclasses.replace(history(4), mask=(torch.arange(4) < 2).repeat(3, 1)), None, "the last of them real"),
            (history(4), torch.rand(3, 4, 2), "draws: got shape (3, 4, 2), allowed is (3, 2, 2)"),
        ],
    )
    def test_wrong_input_is_named(self, windows: Windows, draws: Tensor | None, message: str) -> None:
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            small().search(windows, draws)
        assert "\n" not in str(caught.value)


class TestActing:
    def steps(self, count: int, n: int, seed: int = 5) -> list[Tensor]:
        return list(torch.randn(count, n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))

    def test_acts_by_the_search_among_its_last_steps(self) -> None:
        policy, seen = small(), self.steps(8, 3)
        wanted = Wanted(9.0, None, torch.Generator().manual_seed(6))
        state, reward = policy.init_state(3, wanted), None
        windows = state.windows
        for t, observation in enumerate(seen):
            windows = cast(Windows, next_window(windows, observation, reward))
            h = (min(t + 1, 5) + 1) // 2
            names = streams(state.seeds, seen[0])
            draws = uniform(names, torch.full((3,), t), 2 * h).view(3, h, 2)
            expected = policy.search(windows, draws)
            action, state = policy.act(state, observation, reward)
            torch.testing.assert_close(action, expected.action)
            windows.actions[:, -1] = action
            reward = torch.rand(3, generator=torch.Generator().manual_seed(t))
        torch.testing.assert_close(state.windows.returns_to_go, windows.returns_to_go)

    def test_the_same_generator_repeats_and_another_does_not(self) -> None:
        policy, seen = small(), self.steps(4, 6)

        def played(seed: int | None) -> Tensor:
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            state, actions = policy.init_state(6, Wanted(9.0, None, generator)), []
            for t, observation in enumerate(seen):
                action, state = policy.act(state, observation, torch.ones(6) if t else None)
                actions.append(action)
            return torch.stack(actions)

        assert torch.equal(played(0), played(0)) and not torch.equal(played(0), played(1))
        assert not torch.equal(played(None), played(None))

    def test_episodes_leave_and_begin_anew(self) -> None:
        policy, old, new = small(), self.steps(9, 3), self.steps(5, 1, seed=8)

        def wanted(asked: float = 9.0) -> Wanted:
            return Wanted(asked, None, torch.Generator().manual_seed(2))

        def alone(seen: list[Tensor], asked: float = 9.0) -> list[Tensor]:
            state, actions = policy.init_state(1, wanted(asked)), []
            for t, observation in enumerate(seen):
                action, state = policy.act(state, observation, torch.ones(1) if t else None)
                actions.append(action)
            return actions

        state = policy.init_state(3, wanted())
        for t in range(4):
            _, state = policy.act(state, old[t], torch.ones(3) if t else None)
        kept = state.windows.map(torch.clone)
        state = policy.select(state, torch.tensor([2, 0]))
        over = Outcome(torch.ones(1), torch.ones(1).bool())
        state = policy.next_episode(state, torch.tensor([1]), wanted(3.0), over)
        found = []
        for t in range(5):
            rewards = torch.tensor([1.0, float(t > 0)])
            action, state = policy.act(state, torch.cat([old[t + 4][2:], new[t]]), rewards)
            found.append(action)
        before = [observation[2:] for observation in old]
        torch.testing.assert_close(torch.stack(found)[:, 0], torch.cat(alone(before)[4:]))
        torch.testing.assert_close(torch.stack(found)[:, 1], torch.cat(alone(new, 3.0)))
        assert not torch.equal(kept.states, state.windows.states)

    def test_a_state_is_not_changed(self) -> None:
        policy, seen = small(), self.steps(2, 2)
        _, state = policy.act(policy.init_state(2, 1.0), seen[0])
        kept = state.map(torch.clone)
        policy.act(state, seen[1], torch.ones(2))
        assert all(torch.equal(*pair) for pair in zip(state.tensors(), kept.tensors(), strict=True))

    def test_discrete_actions_are_seen_as_played(self) -> None:
        policy, seen = small(), self.steps(1, 2)
        policy.discrete_actions = True
        action, state = policy.act(policy.init_state(2, 1.0), seen[0])
        assert sorted(action[0].tolist()) == [0, 1] and torch.equal(state.windows.actions[:, -1], action)


class TestSizes:
    @pytest.mark.parametrize("env_id", PUBLISHED)
    def test_published_sizes_have_the_authors_number_of_weights(self, env_id: str) -> None:
        state_size, action_size, theirs = PUBLISHED[env_id]
        facts = Facts(state_size=state_size, action_size=action_size, env_id=env_id)
        changes, recipe = read_changes({"sizes": "published"}, MODEL, TrainConfig, facts)
        with torch.device("meta"):
            policy = MODEL.policy(MODEL.config_for(facts, changes))
        untrained = 2 * 512 + 513  # the embedding of rewards and the head for them
        assert policy.parameter_count() + untrained == theirs
        training = TrainConfig(**recipe)
        assert (training.steps, training.warmup * training.steps, training.batch_size) == (50_000, 10_000, 256)
        assert (training.learning_rate, training.weight_decay, training.clip, training.decay) == (
            1e-4,
            1e-4,
            0.25,
            "all",
        )

    def test_halfcheetah_has_smaller_batches_and_wants_less(self) -> None:
        facts = Facts(state_size=17, action_size=6, env_id="HalfCheetah-v5")
        changes, recipe = read_changes({"sizes": "published"}, MODEL, TrainConfig, facts)
        assert recipe["batch_size"] == 128 and MODEL.config_for(facts, changes).expert_weight == 1.0
        assert MODEL.make_config(11, 3, "Hopper-v5").expert_weight == 15.0

    @pytest.mark.parametrize(
        ("env_id", "returns", "bounds"),
        [
            ("Hopper-v5", (), (-20.272305, 3234.3)),
            ("Hopper-v5", (0.0, 3600.0), (-20.272305, 3234.3)),  # cut, as theirs are
            ("antmaze-umaze-v2", (), (0.0, 1.0)),
            ("dmm/AntMaze-v0", (0.0, 40.0), (0.0, 40.0)),
            ("FrankaKitchen-v1", (0.0, 3.0), (0.0, 4.0)),
            ("PointMaze_UMaze-v3", (0.0, 1.0), (0.0, 1.0)),
            ("Elsewhere-v0", (-7.0, 3.0), (-7.0, 3.0)),
            ("Elsewhere-v0", (2.0, 2.0), (2.0, 3.0)),
            ("Elsewhere-v0", (), (0.0, 1000.0)),
        ],
    )
    def test_data_decide_the_bounds_of_returns(
        self, env_id: str, returns: tuple[float, ...], bounds: tuple[float, float]
    ) -> None:
        facts = Facts(state_size=4, action_size=2, env_id=env_id, returns_to_go=returns, longest=70)
        config = MODEL.config_for(facts, {})
        assert (config.return_low, config.return_high) == bounds and config.max_timestep == 70
        told = MODEL.config_for(facts, {"return_low": -20.0, "return_high": 100.0})
        assert (told.return_low, told.return_high) == (-20, 100)

    def test_facts_know_the_returns(self, trajectories: Trajectories) -> None:
        to_go = trajectories.returns_to_go()
        assert Facts.of(trajectories).returns_to_go == (float(to_go.min()), float(to_go.max()))
        broken = dataclasses.replace(trajectories, rewards=np.where(to_go == to_go.max(), 3e38, 1e38))
        assert Facts.of(broken).returns_to_go == ()

    def test_frame_sizes_for_hopper(self) -> None:
        # d 64. A layer: 4 * 4,160 + 33,088 + 256 = 49,984; table 64,000; embeddings 768 + 128 + 256, their norm 128;
        # heads: action 195, state 748, estimate 65, bins 3,900
        assert 3 * 49_984 + 64_000 + 1_152 + 128 + 195 + 748 + 65 + 3_900 == 220_140
        assert MODEL.policy(MODEL.make_config(11, 3, "Hopper-v5")).parameter_count() == 220_140

    def test_starts_as_pytorch_does(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy: Any = MODEL.policy(MODEL.make_config(11, 3, "Hopper-v5"))
        assert policy.embed_timestep.weight.std().item() == pytest.approx(1.0, rel=0.02)
        for layer in (policy.blocks[0].query, policy.blocks[2].mlp[0], policy.head):
            bound = layer.in_features**-0.5
            assert layer.bias.any() and 0.9 * bound < layer.weight.abs().max() <= bound


def test_dropout_acts_in_training_only_and_in_all_three_places() -> None:
    policy, windows = small(dropout=0.5), history(5)
    assert torch.equal(policy(windows), policy(windows))
    policy.train()
    assert not torch.equal(policy(windows), policy(windows))
    block: Any = policy.blocks[0]
    for kept in (block.read_dropout, block.dropout, block.mlp[3]):
        policy.eval()
        kept.train()
        assert not torch.equal(policy(windows), policy(windows))


def test_attention_is_the_same_with_and_without_gradients() -> None:
    policy, windows = small(), history(5)
    with torch.no_grad():
        without = policy(windows)
    torch.testing.assert_close(policy(windows).detach(), without)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("heads", 3, "divisors of width 8"),
        ("context", 0, "at least 1"),
        ("dropout", 1.0, "0 <= dropout < 1"),
        ("rtg_scale", 0.0, "a positive number"),
        ("return_bins", 1, "at least 2"),
        ("return_high", -3.0, "more than return_low"),
        ("bins", "fixed", "released, corrected"),
        ("expectile", 1.0, "0 < expectile < 1"),
        ("max_timestep", 0, "at least 1"),
    ],
)
def test_wrong_field_is_named(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: got .*, allowed .*{allowed}") as caught:
        EDTConfig(**(SMALL | {field: value}))
    assert "\n" not in str(caught.value)
