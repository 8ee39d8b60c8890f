from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm.data.trajectories import Trajectories
from dmm.data.windows import (
    Batch,
    HistoryWindows,
    RewardedWindows,
    TransitionWindows,
    WindowDraws,
    Windows,
    WindowSampler,
)
from dmm.errors import InputError

LENGTHS = (5, 1, 3)


@pytest.fixture
def trajectories() -> Trajectories:
    """Three episodes in which every number tells its place: state of row i is (i, 100 + i), and so on."""
    rows, lengths = np.arange(9, dtype=np.float32), np.array(LENGTHS)
    return Trajectories(
        observations=np.stack([rows, 100 + rows], axis=1),
        actions=np.stack([rows / 10, -rows / 10], axis=1),
        rewards=1000 + rows,
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        terminated=np.array([True, False, True]),
        dataset_id="three",
        env_id="",
        last_observations=np.array([[50, 150], [60, 160], [70, 170]]),
    )


def sampler(trajectories: Trajectories, **how: object) -> WindowSampler:
    return WindowSampler(trajectories, 4, generator=torch.Generator().manual_seed(0), **how)  # type: ignore[arg-type]


class TestColumns:
    def test_rewards_stand_beside_the_steps_that_earned_them(self, trajectories: Trajectories) -> None:
        windows = sampler(trajectories, batch=RewardedWindows).window_at(2)  # the last three steps of the first episode
        assert isinstance(windows, RewardedWindows)
        assert windows.rewards[0, :, 0].tolist() == [0, 1002, 1003, 1004]
        assert torch.equal(windows.returns_to_go[0, 1:, 0].diff(), -windows.rewards[0, 1:-1, 0])

    def test_the_step_before_may_lie_outside_the_window_but_not_outside_the_episode(
        self, trajectories: Trajectories
    ) -> None:
        source = sampler(trajectories, batch=HistoryWindows)
        inside = source.window_at(1)
        assert torch.equal(inside.previous_actions[0, :, 0], torch.tensor([0, 0.1, 0.2, 0.3]))
        assert inside.previous_rewards[0, :, 0].tolist() == [1000, 1001, 1002, 1003]
        for start in (0, 5, 6):
            first = source.window_at(start)
            begin = int(first.mask[0].int().argmax())
            assert not first.previous_actions[0, begin].any() and not first.previous_rewards[0, begin].any()

    def test_next_states_go_on_behind_an_episodes_last_action(self, trajectories: Trajectories) -> None:
        windows = sampler(trajectories, batch=TransitionWindows).windows_at(torch.tensor([3, 5, 6]))
        assert windows.next_states[0, :, 0].tolist() == [0, 0, 4, 50]
        assert windows.next_states[1, -1].tolist() == [60, 160] and windows.next_states[2, -1].tolist() == [70, 170]
        assert windows.ended[:, :, 0].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]

    def test_data_without_last_observations_say_so(self, trajectories: Trajectories) -> None:
        from dataclasses import replace

        with pytest.raises(InputError, match=r"^last_observations: 'three' has none"):
            sampler(replace(trajectories, last_observations=None), batch=TransitionWindows)

    def test_more_fields_change_none_of_the_others(self, trajectories: Trajectories) -> None:
        plain = sampler(trajectories).sample(6)
        for kind in (RewardedWindows, HistoryWindows, TransitionWindows):
            more = sampler(trajectories, batch=kind).sample(6)
            assert all(torch.equal(getattr(plain, f.name), getattr(more, f.name)) for f in fields(Windows))


class TestPadding:
    def test_on_the_right(self, trajectories: Trajectories) -> None:
        windows = sampler(trajectories, pad="right").windows_at(torch.tensor([0, 3, 5]))
        assert windows.mask.tolist() == [[True] * 4, [True, True, False, False], [True, False, False, False]]
        assert windows.timesteps.tolist() == [[0, 1, 2, 3], [3, 4, 0, 0], [0, 0, 0, 0]]
        for field in ("returns_to_go", "states", "actions"):
            assert not getattr(windows, field)[~windows.mask].any()

    def test_both_sides_hold_the_same_steps(self, trajectories: Trajectories) -> None:
        starts = torch.arange(9)
        left, right = (sampler(trajectories, pad=side).windows_at(starts) for side in ("left", "right"))
        for field in fields(Windows):
            assert torch.equal(getattr(left, field.name)[left.mask], getattr(right, field.name)[right.mask])


class TestDraws:
    def test_by_trajectory_each_is_as_likely_and_windows_are_full(self, trajectories: Trajectories) -> None:
        source, generator = sampler(trajectories, by="trajectory"), torch.Generator().manual_seed(1)
        drawn = source.draw(100, 300, generator).flatten()
        episode = torch.bucketize(drawn, torch.tensor([5, 6]), right=True)
        shares = torch.bincount(episode, minlength=3) / len(drawn)
        torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.01, rtol=0)  # 3.7 standard deviations
        assert set(drawn.tolist()) == {0, 1, 5, 6}  # of the first episode the two starts of full windows

    @pytest.mark.parametrize("by", ["transition", "trajectory"])
    def test_several_batches_are_the_numbers_of_as_many_draws_of_one(self, trajectories: Trajectories, by: str) -> None:
        source, one, other = sampler(trajectories, by=by), *(torch.Generator().manual_seed(2) for _ in range(2))
        assert torch.equal(source.draw(3, 5, one), torch.cat([source.draw(1, 5, other) for _ in range(3)]))

    def test_by_transition_each_is_as_likely(self, trajectories: Trajectories) -> None:
        drawn = sampler(trajectories).draw(100, 300, torch.Generator().manual_seed(1)).flatten()
        shares = torch.bincount(drawn, minlength=9) / len(drawn)
        torch.testing.assert_close(shares, torch.full((9,), 1 / 9), atol=0.01, rtol=0)

    def test_what_a_model_asks_for_is_what_it_gets(self, trajectories: Trajectories) -> None:
        @dataclass
        class Config:
            context: int = 3

        source = WindowDraws(HistoryWindows, "trajectory", "right")(trajectories, Config(), "cpu")
        assert (source.batch, source.by, source.pad, source.context) == (HistoryWindows, "trajectory", "right", 3)

    @pytest.mark.parametrize(("name", "value"), [("by", "episode"), ("pad", "both")])
    def test_wrong_choice(self, trajectories: Trajectories, name: str, value: str) -> None:
        with pytest.raises(InputError, match=f"^{name}: got '{value}', allowed are"):
            sampler(trajectories, **{name: value})


class TestBatch:
    def test_axes_in_front_are_merged(self, trajectories: Trajectories) -> None:
        source = sampler(trajectories, batch=RewardedWindows)
        index = torch.arange(6).view(2, 3)
        apart, merged = source.gather(index), source.gather(index).merged()
        assert apart.shape == (2, 3) and merged.shape == (6,) and isinstance(merged, RewardedWindows)
        whole = source.gather(index.flatten())
        assert all(torch.equal(getattr(merged, f.name), getattr(whole, f.name)) for f in fields(merged))

    def test_a_batch_of_other_fields(self) -> None:
        @dataclass(frozen=True, eq=False)
        class Pairs(Batch):
            states: Tensor  # (b, s)
            goals: Tensor  # (b, g)

        pairs = Pairs(torch.zeros(2, 3, 4), torch.ones(2, 3, 1))
        assert pairs.shape == (2, 3) and pairs.merged().goals.shape == (6, 1)
        assert pairs.map(lambda field: field[0]).states.shape == (3, 4)


class TestLastObservations:
    def test_wrong_shape(self, trajectories: Trajectories) -> None:
        from dataclasses import replace

        with pytest.raises(InputError, match=r"^last_observations: got shape \(2, 2\), allowed is \(3, 2\)"):
            replace(trajectories, last_observations=np.zeros((2, 2)))
        with pytest.raises(InputError, match=r"^last_observations: .*in episode 1"):
            replace(trajectories, last_observations=np.array([[0, 0], [0, np.nan], [0, 0]]))

    def test_they_are_without_the_offset_too(self) -> None:
        seconds = 1.7e9 + np.arange(4.0)
        made = Trajectories(
            observations=seconds[:3, None],
            actions=np.zeros((3, 1)),
            rewards=np.zeros(3),
            starts=np.array([0]),
            lengths=np.array([3]),
            terminated=np.array([False]),
            dataset_id="clock",
            env_id="",
            last_observations=seconds[3:, None],
        )
        assert made.observation_offset is not None
        assert np.diff(made.next_observations()[:, 0]).tolist() == [1, 1]

    def test_they_leave_the_fingerprint_as_it_was(self, trajectories: Trajectories) -> None:
        from dataclasses import replace

        assert replace(trajectories, last_observations=None).fingerprint() == trajectories.fingerprint()
