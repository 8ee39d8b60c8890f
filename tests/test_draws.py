from __future__ import annotations

import pytest
import torch

from dmm.draws import category, normal, seed_of, streams, uniform


def test_splitmix64_gives_its_known_numbers() -> None:
    """The first outputs for seed 0, as the reference implementation prints them."""
    from dmm.draws import STRIDE, _mixed

    counters = STRIDE * torch.arange(1, 4).numpy().astype("uint64")
    assert [f"{number:016x}" for number in _mixed(counters)] == [
        "e220a8397b1dcdaf",
        "6e789e6aa1b965f4",
        "06c45d188009454f",
    ]


def test_an_episode_draws_the_same_whatever_is_beside_it() -> None:
    seeds, first = torch.full((5,), 3), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    step = torch.arange(5)
    together = uniform(streams(seeds, first), step, 6)
    for row in range(5):
        alone = slice(row, row + 1)
        assert torch.equal(uniform(streams(seeds[alone], first[alone]), step[alone], 6), together[alone])
    assert torch.equal(uniform(streams(seeds, first), step, 4), together[:, :4])  # nor on how many are asked for


@pytest.mark.parametrize("changed", ["seed", "observation", "step"])
def test_all_that_names_a_number_changes_it(changed: str) -> None:
    seeds, first, step = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64)
    before = uniform(streams(seeds, first), step, 8)
    if changed == "seed":
        seeds = seeds + 1
    elif changed == "observation":
        first = first + torch.tensor([0.0, 1e-7, 0.0])
    else:
        step = step + 1
    assert not (uniform(streams(seeds, first), step, 8) == before).any()


def test_entries_of_an_observation_have_places() -> None:
    seeds, one = torch.zeros(1, dtype=torch.int64), torch.tensor([[1.0, 2.0]])
    assert streams(seeds, one) != streams(seeds, one.flip(1))


def test_numbers_are_uniform() -> None:
    episodes = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    stream = streams(torch.zeros(100, dtype=torch.int64), episodes)
    drawn = torch.stack([uniform(stream, torch.full((100,), step), 20) for step in range(50)])  # 100,000 numbers
    assert drawn.min() >= 0 and drawn.max() < 1
    shares = torch.histc(drawn, 10, 0, 1) / drawn.numel()
    assert (shares - 0.1).abs().max() < 5 * (0.09 / drawn.numel()) ** 0.5  # five standard errors
    for axis in range(3):  # steps, episodes, numbers of a step
        ahead, behind = drawn.narrow(axis, 1, drawn.shape[axis] - 1), drawn.narrow(axis, 0, drawn.shape[axis] - 1)
        together = torch.corrcoef(torch.stack([ahead.flatten(), behind.flatten()]))[0, 1]
        assert abs(together) < 5 / ahead.numel() ** 0.5


def test_seed_follows_from_the_generator_and_leaves_it() -> None:
    generator = torch.Generator().manual_seed(4)
    before = generator.get_state()
    assert seed_of(generator) == seed_of(generator) and torch.equal(generator.get_state(), before)
    assert seed_of(torch.Generator().manual_seed(5)) != seed_of(generator)
    torch.manual_seed(0)
    assert seed_of(None) != seed_of(None)
    torch.manual_seed(1)
    drawn = seed_of(None)
    torch.manual_seed(1)
    assert seed_of(None) == drawn


def test_normal_numbers_are_those_of_a_bell_curve_and_finite() -> None:
    drawn = normal(torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), 200_000)[0].double()
    assert drawn.isfinite().all()
    for power, moment in enumerate((1.0, 0.0, 1.0, 0.0, 3.0)):
        assert float((drawn**power).mean()) == pytest.approx(moment, abs=0.05)


def test_categories_come_in_the_shares_of_softmax() -> None:
    logits = torch.tensor([0.0, 2.0, float("-inf"), -1.0, 0.5]).expand(20_000, 5)
    stream = streams(torch.arange(20_000), torch.zeros(20_000, 1))
    drawn = category(logits, stream, torch.zeros(20_000, dtype=torch.int64))
    assert torch.equal(drawn.sum(dim=1), torch.ones(20_000)) and drawn[:, 2].sum() == 0
    expected = logits[0].softmax(dim=0)
    assert ((drawn.mean(dim=0) - expected).abs() < 5 * (expected * (1 - expected) / 20_000).sqrt() + 1e-9).all()
    again = category(logits[:7], stream[:7], torch.zeros(7, dtype=torch.int64))
    assert torch.equal(again, drawn[:7])
