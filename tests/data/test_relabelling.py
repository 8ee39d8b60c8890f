from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmm.data.relabelling import Relabelled, RelabelledSampler, relabel, relabel_all, window_returns
from dmm.data.trajectories import Trajectories
from dmm.data.windows import WindowSampler
from dmm.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "qldt.npz"
EPISODES = st.lists(st.tuples(st.floats(-10, 10), st.floats(-20, 20)), min_size=1, max_size=12)


@pytest.fixture
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return {key: arrays[key] for key in arrays.files}


def recursion(rewards: Any, values: Any, first: float | None = None) -> list[float]:
    """The rule as it is written; `first` is R of the last step, its reward if not given."""
    returns = [float(rewards[-1]) if first is None else first]
    for t in reversed(range(len(rewards) - 1)):
        returns.insert(0, rewards[t] + max(returns[0], values[t + 1]))
    return returns


def double_loop(rewards: Any, values: Any) -> list[float]:
    """For each step: all later steps at which the critic could take over, and the end."""
    steps = range(len(rewards))
    return [max([sum(rewards[t:]), *(sum(rewards[t:u]) + values[u] for u in steps if u > t)]) for t in steps]


class TestRelabel:
    def test_by_hand(self) -> None:
        assert relabel([1, 0, 2], [9, 5, 1]).tolist() == [6, 2, 2]

    def test_the_values_of_the_first_state_and_behind_the_end_never_enter(self) -> None:
        assert relabel([1.0], [100.0]).tolist() == [1.0]
        assert relabel([1.0, 1.0], [100.0, 0.0]).tolist() == [2.0, 1.0]

    @given(EPISODES)
    def test_equals_a_double_loop_and_the_recursion(self, steps: list[tuple[float, float]]) -> None:
        rewards, values = zip(*steps, strict=True)
        found = relabel(rewards, values)
        np.testing.assert_allclose(found, double_loop(rewards, values), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found, recursion(rewards, values), rtol=1e-12, atol=1e-12)

    @given(EPISODES, st.booleans())
    def test_dropped_begins_at_the_last_transition_from_nothing(
        self, steps: list[tuple[float, float]], terminated: bool
    ) -> None:
        rewards, values = zip(*steps, strict=True)
        last = max(len(rewards) - (1 if terminated else 2), 0)
        plain = [sum(rewards[t:]) for t in range(len(rewards))]
        before = recursion([*rewards[:last], 0.0], values[: last + 1], first=0.0)[:last]
        found = relabel(rewards, values, last_reward="dropped", terminated=terminated)
        np.testing.assert_allclose(found, [*before, *plain[last:]], rtol=1e-12, atol=1e-12)

    @given(EPISODES)
    def test_it_never_falls_below_the_plain_return_and_no_value_means_no_change(
        self, steps: list[tuple[float, float]]
    ) -> None:
        rewards, values = map(np.array, zip(*steps, strict=True))
        nothing = relabel(rewards, np.full(len(rewards), -np.inf))
        np.testing.assert_array_equal(nothing, np.cumsum(rewards[::-1])[::-1])
        assert (relabel(rewards, values) >= nothing).all()

    def test_equals_the_authors_maze(self, golden: dict[str, np.ndarray]) -> None:
        _, states, to_go, done = golden["maze/data"].T
        begin = 0
        for end in np.flatnonzero(done):  # the last row of an episode is the state behind its last step
            rewards = to_go[begin:end] - to_go[begin + 1 : end + 1]
            values = golden["maze/value"][states[begin:end].astype(int)]
            np.testing.assert_allclose(relabel(rewards, values), golden["maze/returns_by_recursion"][begin:end])
            begin = end + 1

    @pytest.mark.parametrize(
        ("rewards", "values", "message"),
        [
            ([1.0, 2.0], [1.0], r"^values: got 1 for 2 rewards, allowed is one for each"),
            ([], [], r"^values: got 0 for 0 rewards, .*at least one"),
            ([[1.0]], [1.0], r"^rewards: got shape \(1, 1\), allowed are finite numbers \(T,\)"),
            ([np.nan], [1.0], r"^rewards: got nan"),
            ([-np.inf], [1.0], r"^rewards: got -inf"),
            ([1.0], [np.nan], r"^values: got nan"),
            ([1.0], [np.inf], r"^values: got inf"),
            (["a"], [1.0], r"^rewards: got shape \(1,\) of <U1, allowed are real numbers"),
        ],
    )
    def test_wrong_input(self, rewards: Any, values: Any, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            relabel(rewards, values)
        assert "\n" not in str(caught.value)

    def test_unknown_reading(self) -> None:
        with pytest.raises(InputError, match=r"^last_reward: got 'lost', allowed are kept, dropped"):
            relabel([1.0], [1.0], last_reward="lost")  # type: ignore[arg-type]


@pytest.fixture
def values(trajectories: Trajectories) -> np.ndarray:
    return np.random.default_rng(0).uniform(-2, 8, size=trajectories.transitions)


class TestDataSet:
    @pytest.mark.parametrize("last_reward", ["kept", "dropped"])
    def test_every_episode_is_relabelled_by_itself(
        self, trajectories: Trajectories, values: np.ndarray, last_reward: Any
    ) -> None:
        t, made = trajectories, relabel_all(trajectories, values, last_reward=last_reward)
        for start, length, terminated in zip(t.starts, t.lengths, t.terminated, strict=True):
            own = slice(start, start + length)
            expected = relabel(t.rewards[own], values[own], last_reward=last_reward, terminated=bool(terminated))
            np.testing.assert_allclose(made.relabelled_returns()[own], expected, rtol=1e-6)

    def test_relabelled_steps_are_those_of_a_larger_return(
        self, trajectories: Trajectories, values: np.ndarray
    ) -> None:
        made = relabel_all(trajectories, values)
        larger = made.relabelled_returns() > trajectories.returns_to_go()
        assert 0 < made.relabelled_steps() == larger.sum() < trajectories.transitions
        assert not larger[trajectories.starts + trajectories.lengths - 1].any()  # of the last step nothing is known

    def test_all_else_stays(self, trajectories: Trajectories, values: np.ndarray) -> None:
        made = relabel_all(trajectories, values)
        assert made.fingerprint() == trajectories.fingerprint()
        assert np.array_equal(made.returns_to_go(), trajectories.returns_to_go())

    def test_wrong_input(self, trajectories: Trajectories, values: np.ndarray) -> None:
        n, length = trajectories.transitions, trajectories.lengths[1]
        with pytest.raises(InputError, match=rf"^values: got {n - 1}, allowed is one for each of {n} observations"):
            relabel_all(trajectories, values[1:])
        with pytest.raises(InputError, match=rf"^lifts: got shape \({n},\), allowed is \({length},\)"):
            relabel_all(trajectories, values).select([1])

    @pytest.mark.parametrize("last_reward", ["kept", "dropped"])
    def test_the_script_for_d4rl(self, golden: dict[str, np.ndarray], make: MakeEpisodes, last_reward: Any) -> None:
        t = make(golden)
        found = relabel_all(t, golden["d4rl/values"], last_reward=last_reward).relabelled_returns()
        if last_reward == "kept":
            np.testing.assert_allclose(found, golden["d4rl/returns_by_recursion"], rtol=1e-5, atol=1e-5)
            return
        ends = t.starts[golden["d4rl/window_episode"]] + golden["d4rl/window_last_step"]
        np.testing.assert_allclose(found[ends], golden["d4rl/returns_to_go"][:, -1], rtol=1e-5, atol=1e-5)


MakeEpisodes = Callable[[dict[str, np.ndarray]], Trajectories]


@pytest.fixture
def make() -> MakeEpisodes:
    """The episodes that the script for D4RL was given: the second was cut off."""

    def make(golden: dict[str, np.ndarray]) -> Trajectories:
        lengths, n = golden["d4rl/lengths"], len(golden["d4rl/rewards"])
        return Trajectories(
            observations=golden["d4rl/observations"],
            actions=np.zeros((n, 2), np.float32),
            rewards=golden["d4rl/rewards"],
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            terminated=np.array([True, False, True]),
            dataset_id="golden/d4rl-v0",
            env_id="",
        )

    return make


def sampler_of(trajectories: Trajectories, context: int, **options: Any) -> RelabelledSampler:
    return RelabelledSampler(trajectories, context, generator=torch.Generator().manual_seed(0), **options)


class TestWindows:
    def test_by_hand(self) -> None:
        returns = window_returns(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([2.0, 6.0]))
        assert returns.tolist() == [[3.0, 2.0], [6.0, 6.0]]

    def test_padding_on_either_side_is_zero(self) -> None:
        rewards, mask = torch.tensor([[9.0, 1.0, 2.0], [1.0, 2.0, 9.0]]), torch.tensor([[0, 1, 1], [1, 1, 0]]).bool()
        returns = window_returns(rewards, torch.tensor([5.0, 7.0]), mask)
        assert returns.tolist() == [[0.0, 6.0, 5.0], [8.0, 7.0, 0.0]]

    def test_equals_the_authors_maze(self, golden: dict[str, np.ndarray]) -> None:
        rewards, expected = (torch.from_numpy(golden[f"maze/{name}"]) for name in ("rewards", "windows"))
        assert torch.equal(window_returns(rewards, expected[:, -1, 2]), expected[..., 2])

    def test_windows_of_the_script_for_d4rl(self, golden: dict[str, np.ndarray], make: MakeEpisodes) -> None:
        t = make(golden)
        made = relabel_all(t, golden["d4rl/values"], last_reward="dropped")
        last = torch.from_numpy(t.starts[golden["d4rl/window_episode"]] + golden["d4rl/window_last_step"])
        windows = sampler_of(made, golden["d4rl/mask"].shape[1], drawn="last").windows_at(last)
        assert torch.equal(windows.mask, torch.from_numpy(golden["d4rl/mask"]))
        expected = torch.from_numpy(golden["d4rl/returns_to_go"])
        torch.testing.assert_close(windows.returns_to_go[..., 0], expected, rtol=0, atol=1e-5)
        times = torch.from_numpy(golden["d4rl/timesteps"])  # which begin at 1
        assert torch.equal(windows.timesteps, (times - 1) * windows.mask)

    @pytest.mark.parametrize("last_reward", ["kept", "dropped"])
    @pytest.mark.parametrize("pad", ["left", "right"])
    @pytest.mark.parametrize("drawn", ["first", "last"])
    @pytest.mark.parametrize("context", [1, 4, 20])
    def test_returns_depend_on_the_end_and_are_consistent_with_the_rewards(
        self, trajectories: Trajectories, values: np.ndarray, context: int, drawn: Any, pad: Any, last_reward: Any
    ) -> None:
        t, made = trajectories, relabel_all(trajectories, values, last_reward=last_reward)
        sampler = sampler_of(made, context, drawn=drawn, pad=pad)
        windows = sampler.windows_at(torch.arange(t.transitions))
        for at in range(t.transitions):
            episode = int(np.searchsorted(t.starts, at, side="right")) - 1
            begin, end = int(t.starts[episode]), int(t.starts[episode] + t.lengths[episode])
            rows = (
                range(at, min(at + context, end)) if drawn == "first" else range(max(begin, at - context + 1), at + 1)
            )
            real = windows.mask[at]
            place = slice(context - len(rows), context) if pad == "left" else slice(0, len(rows))
            assert real[place].all() and int(real.sum()) == len(rows)
            assert np.array_equal(windows.states[at][real].numpy(), t.observations[list(rows)])
            assert windows.timesteps[at][real].tolist() == [row - begin for row in rows]
            last = torch.tensor(made.relabelled_returns()[rows[-1]])
            expected = window_returns(torch.from_numpy(t.rewards[list(rows)]).double(), last)
            found = windows.returns_to_go[at][..., 0]
            np.testing.assert_allclose(found[real].numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
            assert not found[~real].any()

    def test_a_critic_that_expects_nothing_changes_no_window(self, trajectories: Trajectories) -> None:
        nothing = relabel_all(trajectories, np.full(trajectories.transitions, -np.inf))
        assert nothing.relabelled_steps() == 0
        plain = WindowSampler(trajectories, 5, generator=torch.Generator())
        every = torch.arange(trajectories.transitions)
        for data in (nothing, trajectories, Relabelled(**vars(trajectories))):
            windows, expected = sampler_of(data, 5).windows_at(every), plain.windows_at(every)
            assert all(torch.equal(getattr(windows, name), field) for name, field in vars(expected).items())

    @pytest.mark.parametrize(
        ("rewards", "last", "mask", "message"),
        [
            (torch.zeros(2, 3), torch.zeros(3), None, r"^last: got shape \(3,\), allowed is \(2,\)"),
            (torch.zeros(()), torch.zeros(()), None, r"^rewards: got shape \(\), allowed is \(\.\.\., k\)"),
            (
                torch.zeros(2, 3),
                torch.zeros(2),
                torch.ones(2, 2) > 0,
                r"^mask: got shape \(2, 2\), allowed is \(2, 3\)",
            ),
        ],
    )
    def test_wrong_input(self, rewards: Any, last: Any, mask: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            window_returns(rewards, last, mask)

    def test_unknown_draw(self, trajectories: Trajectories) -> None:
        with pytest.raises(InputError, match=r"^drawn: got 'middle', allowed are first, last"):
            sampler_of(trajectories, 3, drawn="middle")
