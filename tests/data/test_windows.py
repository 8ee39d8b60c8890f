from __future__ import annotations

import numpy as np
import pytest
import torch

from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import InputError


def sampler(trajectories: Trajectories, context: int = 4, seed: int = 0) -> WindowSampler:
    return WindowSampler(trajectories, context, generator=torch.Generator().manual_seed(seed))


def naive_window(trajectories: Trajectories, episode: int, first: int, k: int) -> dict[str, np.ndarray]:
    """Decision Transformer's `get_batch` for one sample: slice, then pad each array on the left."""
    start, length = int(trajectories.starts[episode]), int(trajectories.lengths[episode])
    rows = slice(start, start + length)
    states = trajectories.observations[rows][first : first + k]
    actions = trajectories.actions[rows][first : first + k]
    rewards = trajectories.rewards[rows].astype(np.float64)
    to_go = np.array([[sum(rewards[t:])] for t in range(length)])[first : first + k]
    real = len(states)
    pad = k - real

    def padded(array: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros((pad, array.shape[1])), array])

    return {
        "returns_to_go": padded(to_go),
        "states": padded(states),
        "actions": padded(actions),
        "timesteps": np.concatenate([np.zeros(pad), np.arange(first, first + real)]),
        "mask": np.concatenate([np.zeros(pad), np.ones(real)]),
    }


@pytest.mark.parametrize("context", [1, 4, 20])
def test_every_window_equals_the_naive_one(trajectories: Trajectories, context: int) -> None:
    windows = sampler(trajectories, context).windows_at(torch.arange(trajectories.transitions))
    index = 0
    for episode, length in enumerate(trajectories.lengths):
        for first in range(length):
            for name, expected in naive_window(trajectories, episode, first, context).items():
                np.testing.assert_allclose(getattr(windows, name)[index].numpy(), expected, atol=1e-6, err_msg=name)
            index += 1
    assert index == trajectories.transitions


def test_shapes_and_types(trajectories: Trajectories) -> None:
    windows = sampler(trajectories).sample(9)
    assert windows.returns_to_go.shape == (9, 4, 1) and windows.returns_to_go.dtype == torch.float32
    assert windows.states.shape == (9, 4, 3) and windows.states.dtype == torch.float32
    assert windows.actions.shape == (9, 4, 2) and windows.actions.dtype == torch.float32
    assert windows.timesteps.shape == (9, 4) and windows.timesteps.dtype == torch.int64
    assert windows.mask.shape == (9, 4) and windows.mask.dtype == torch.bool


def test_short_windows_are_padded_on_the_left_with_zeros(trajectories: Trajectories) -> None:
    window = sampler(trajectories).window_at(7)  # the episode of one step
    assert window.mask.tolist() == [[False, False, False, True]]
    assert window.timesteps.tolist() == [[0, 0, 0, 0]]
    assert window.states[0, :3].eq(0).all() and window.actions[0, :3].eq(0).all()
    assert window.returns_to_go[0, :3].eq(0).all()
    np.testing.assert_array_equal(window.states[0, 3], trajectories.observations[7])
    assert window.returns_to_go[0, 3, 0].item() == trajectories.rewards[7]


def test_windows_never_cross_an_episode_and_always_hold_a_step(trajectories: Trajectories) -> None:
    windows = sampler(trajectories, 6).sample(500)
    assert windows.mask[:, -1].all()
    steps = windows.timesteps.diff(dim=1)[windows.mask[:, :-1]]
    assert steps.eq(1).all()
    rows = windows.states[:, :, 0] - 1  # the fixture numbers its rows
    episodes = np.searchsorted(np.cumsum(trajectories.lengths), rows.numpy(), side="right")
    for row, mask in zip(episodes, windows.mask.numpy(), strict=True):
        assert len(set(row[mask])) == 1


def test_trajectories_are_drawn_in_proportion_to_their_length(trajectories: Trajectories) -> None:
    n = 40_000
    windows = sampler(trajectories, 1).sample(n)
    rows = windows.states[:, 0, 0].numpy().astype(int) - 1
    shares = np.add.reduceat(np.bincount(rows, minlength=trajectories.transitions), trajectories.starts) / n
    expected = trajectories.lengths / trajectories.transitions
    np.testing.assert_array_less(np.abs(shares - expected), 4 * np.sqrt(expected * (1 - expected) / n))
    starts = np.bincount(rows, minlength=trajectories.transitions) / n
    p = 1 / trajectories.transitions  # and the start is uniform within each
    np.testing.assert_array_less(np.abs(starts - p), 4.5 * np.sqrt(p * (1 - p) / n))


def test_the_generator_alone_decides(trajectories: Trajectories) -> None:
    first, again, other = sampler(trajectories, seed=3), sampler(trajectories, seed=3), sampler(trajectories, seed=4)
    torch.manual_seed(0)
    a = [first.sample(8).states for _ in range(3)]
    torch.manual_seed(99)
    b = [again.sample(8).states for _ in range(3)]
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], other.sample(8).states)
    assert not torch.equal(a[0], a[1])


def test_a_restored_generator_continues_the_sequence(trajectories: Trajectories) -> None:
    first = sampler(trajectories)
    first.sample(8)
    state = first.generator.get_state()
    expected = first.sample(8).actions
    resumed = sampler(trajectories, seed=77)
    resumed.generator.set_state(state)
    assert torch.equal(resumed.sample(8).actions, expected)


def test_sampling_leaves_the_data_alone(trajectories: Trajectories) -> None:
    before = trajectories.fingerprint()
    windows = sampler(trajectories).sample(50)
    for tensor in (windows.states, windows.actions, windows.returns_to_go):
        tensor.fill_(7)
    assert trajectories.fingerprint() == before


def test_to_moves_every_tensor(trajectories: Trajectories) -> None:
    moved = sampler(trajectories).sample(2).to("meta")
    assert isinstance(moved, Windows)
    assert {tensor.device.type for tensor in vars(moved).values()} == {"meta"}


def test_draws_are_the_numbers_of_as_many_single_batches(trajectories: Trajectories) -> None:
    # committed results rest on this stream: one `torch.randint` of a batch's size per update
    ours, plain = sampler(trajectories), torch.Generator().manual_seed(0)
    blocks = torch.cat([ours.draw(updates, 64, ours.generator) for updates in (3, 1, 7)])
    assert torch.equal(blocks, torch.stack([torch.randint(28, (64,), generator=plain) for _ in range(11)]))
    assert torch.equal(ours.generator.get_state(), plain.get_state())


def test_sample_gathers_what_it_draws(trajectories: Trajectories) -> None:
    first, second = sampler(trajectories), sampler(trajectories)
    windows, again = first.sample(8), second.windows_at(second.draw(1, 8, second.generator)[0])
    assert all(torch.equal(a, b) for a, b in zip(vars(windows).values(), vars(again).values(), strict=True))


def test_several_batches_are_gathered_at_once(trajectories: Trajectories) -> None:
    source = sampler(trajectories)
    first = source.draw(3, 5, source.generator)
    windows, merged = source.gather(first), source.gather(first).merged()
    assert windows.states.shape == (3, 5, 4, 3) and windows.mask.shape == (3, 5, 4)
    for name, tensor in vars(source.windows_at(first.flatten())).items():
        assert torch.equal(getattr(windows, name).flatten(0, 1), tensor)
        assert torch.equal(getattr(merged, name), tensor)


def test_data_lie_on_the_device_that_was_asked_for(trajectories: Trajectories) -> None:
    source = WindowSampler(trajectories, 4, generator=torch.Generator(), device="meta")
    windows = source.gather(torch.zeros(2, 3, dtype=torch.int64))
    assert {tensor.device.type for tensor in vars(windows).values()} == {"meta"}
    assert windows.states.shape == (2, 3, 4, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: sampler(t, 0), ["context", "0", "at least 1"]),
        (lambda t: sampler(t).sample(0), ["batch_size", "0", "at least 1"]),
        (lambda t: sampler(t).window_at(28), ["first_indices", "0 .. 27"]),
        (lambda t: sampler(t).window_at(-1), ["first_indices", "0 .. 27"]),
        (lambda t: sampler(t).windows_at(torch.zeros(2, 2)), ["first_indices", "(b,)"]),
    ],
)
def test_wrong_input_is_named(trajectories: Trajectories, call, words) -> None:
    with pytest.raises(InputError) as caught:
        call(trajectories)
    assert all(word in str(caught.value) for word in words)
