"""Lists of jobs on workers, failures, and the variance of a mean, against other roads to the same numbers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmm.errors import InputError
from dmm.experiments import load_result, scaling, table_costs
from dmm.experiments.queue import keep_outcome
from dmm.experiments.reproduce import make_jobs
from dmm.experiments.table_costs import data_lengths, job_hours, schedule
from dmm.experiments.tables import find_cells


@pytest.mark.parametrize("scale", ["small", "full"])
def test_the_parts_of_a_job_are_its_hours(scale: str) -> None:
    costs, lengths = load_result("table_costs"), data_lengths()
    given: Any = (costs["policies"], costs["environments"], lengths)
    for job in make_jobs(find_cells(), scale, Path("runs"), Path("rows")):
        parts, one = table_costs.job_parts(job, *given), costs["policies"][table_costs.kind(job)]
        training = job.steps * one["update"] + sum(each["steps"] * each["update"] for each in one["before"])
        played = job.checkpoints * len(job.targets) * job.episodes * lengths[job.dataset]
        seconds = training + played * (one["action"] + costs["environments"][table_costs.family(job)])
        assert tuple(parts) == table_costs.PARTS and job_hours(job, *given) == pytest.approx(seconds / 3600)
        assert sum(parts.values()) == pytest.approx(seconds / 3600)
    short = dataclasses.replace(job, max_steps=20)
    assert lengths[job.dataset] > 20
    less = (table_costs.job_parts(short, *given)[name] / parts[name] for name in ("actions", "simulator"))
    assert list(less) == pytest.approx([20 / lengths[job.dataset]] * 2)


def put(rows: Path, names: tuple[str, ...], seeds: tuple[int, ...], low: int = 0) -> None:
    """Outcomes of cells: seed s arrives in `low` + s of 50 episodes at its last checkpoint."""
    for job in make_jobs(find_cells(names), "small", Path("runs"), rows):
        if job.seed in seeds:
            returns = " ".join("1" if i < low + job.seed else "0" for i in range(50))
            row = {"data": {"reference": [0.0, 1.0]}, "checkpoints": [{"scores": [{"returns": returns}]}]}
            keep_outcome(job, row)


class TestOutcomes:
    def test_of_none(self, tmp_path: Path) -> None:
        states = scaling.progress_map("small", tmp_path)
        assert sum(int((table == 0).sum()) for table in states.values()) == len(
            make_jobs(find_cells(), "small", Path("runs"), tmp_path)
        )
        assert all(set(np.unique(table)) <= {0, 2} for table in states.values())
        assert scaling.scatter_of_outcomes("small", tmp_path) == {}
        rows = scaling.map_rows(states)
        assert rows.shape == (4 * len(states), 81) and np.isnan(rows[3::4]).all()
        assert (~np.isnan(rows)).sum() == sum(table.size for table in states.values())

    def test_of_some(self, tmp_path: Path) -> None:
        put(tmp_path, ("pointmaze/pointmaze-umaze/dmm", "pointmaze/pointmaze-umaze/bc"), (0,))
        states = scaling.progress_map("small", tmp_path)
        assert (states["pointmaze"] == 1).sum() == 2 and (states["pointmaze"][1:] == 0).all()
        assert states["table9"].shape == (3, 8) and states["table9"][:, 0].tolist() == [3, 2, 2]  # dmm on the maze
        assert scaling.scatter_of_outcomes("small", tmp_path) == {}  # one seed says nothing of others

    def test_of_several_seeds(self, tmp_path: Path) -> None:
        put(tmp_path, ("pointmaze/pointmaze-umaze/dmm",), (0, 2), low=20)
        put(tmp_path, ("pointmaze/pointmaze-umaze/bc",), (0, 1, 2), low=30)
        put(tmp_path, ("pointmaze/pointmaze-umaze/dt",), (1,))  # alone
        [(name, (found, cells))] = scaling.scatter_of_outcomes("small", tmp_path).items()
        # means of 40, 44 and of 60, 62, 64 points: squares of 8 and 8, three degrees of freedom; less than episodes
        assert (name, cells, found.freedom) == ("dmm/pointmaze/umaze-v0", 2, 3)
        assert found.between == found.low == 0 < found.high and 47 < found.within < 50

    def test_of_all_seeds_everywhere(self, tmp_path: Path) -> None:
        put(tmp_path, ("table8", "table9"), (0, 1, 2), low=25)
        states = scaling.progress_map("small", tmp_path)
        assert set(np.unique(states["table8"])) <= {1, 3} and set(np.unique(states["table9"])) <= {1, 3}
        assert len(scaling.scatter_of_outcomes("small", tmp_path)) == len(
            {cell.dataset for cell in find_cells(["table8", "table9"])}
        )


class TestTimeline:
    @pytest.mark.parametrize("workers", [1, 2, 7, 64])
    def test_ends_with_the_schedule_and_no_worker_does_two_jobs(self, workers: int) -> None:
        hours = np.random.default_rng(workers).exponential(size=50).tolist()
        turns = scaling.timeline(hours, workers)
        assert max(turn.end for turn in turns) == pytest.approx(schedule(hours, workers))
        assert [turn.end - turn.begin for turn in turns] == pytest.approx(hours)
        for worker in range(workers):
            own = [turn for turn in turns if turn.worker == worker]
            assert all(a.end <= b.begin + 1e-12 for a, b in itertools.pairwise(own))

    def test_busy_by_hand(self) -> None:
        turns = scaling.timeline([3, 1, 1, 4, 2], 2)  # until 5 on one worker, until 6 on the other
        assert scaling.busy(turns, [0.5, 2.5, 4.9, 5.5, 7.0]).tolist() == [2, 2, 2, 1, 0]
        area = scaling.busy(turns, np.arange(0.005, 6, 0.01)).sum() * 0.01
        assert area == pytest.approx(11, abs=0.05)

    def test_needs_a_worker(self) -> None:
        with pytest.raises(InputError, match=r"^workers: got 0"):
            scaling.timeline([1.0], 0)


class TestPower:
    def test_of_a_power(self) -> None:
        x = np.array([8.0, 20, 30])
        assert scaling.power(x, 0.3 * x**1.7) == pytest.approx(1.7)

    @pytest.mark.parametrize(("x", "y"), [([1, 2], [1]), ([2, 2], [1, 3]), ([1, 2], [0, 3]), ([-1, 2], [1, 3])])
    def test_refuses_what_has_no_exponent(self, x: list[float], y: list[float]) -> None:
        with pytest.raises(InputError):
            scaling.power(x, y)


class TestFailures:
    def test_youngs_interval_is_where_the_expected_time_is_least(self) -> None:
        write, between = 1e-4, 1.0
        every = np.geomspace(1e-3, 1, 20_001)
        best = every[scaling.expected_stretch(every, write, between).argmin()]
        assert best == pytest.approx(scaling.young(write, between), rel=0.02)

    def test_without_failures_a_checkpoint_is_all_that_it_costs(self) -> None:
        assert scaling.expected_stretch(2.0, 0.5, 1e9) == pytest.approx(1.25)

    def test_simulated_and_expected_agree(self) -> None:
        taken, lost = scaling.interrupted(40, 0.2, 0.02, 1.0, 500, np.random.default_rng(3))
        error = taken.std(ddof=1) / math.sqrt(len(taken)) / (40 * 0.2)
        assert abs(taken.mean() / (40 * 0.2) - scaling.expected_stretch(0.2, 0.02, 1.0)) < 4 * error
        assert lost.max() <= 0.2 and abs(lost.mean() - 0.1) < 0.01


class TestScatter:
    def test_finds_what_was_put_in(self) -> None:
        draw = np.random.default_rng(0)
        between, within, episodes = 6.0, 40.0, 100
        true = 70 + between * draw.normal(size=(200, 5))
        played = true[..., None] + within * draw.normal(size=(200, 5, episodes))
        found = scaling.scatter(played.mean(-1).tolist(), played.var(-1, ddof=1).tolist(), episodes)
        assert found is not None and found.freedom == 800
        assert found.between == pytest.approx(between, abs=0.4) and found.within == pytest.approx(within, abs=0.5)
        assert found.low < between < found.high

    def test_by_hand(self) -> None:
        found = scaling.scatter([[1.0, 5.0], [7.0]], [[10.0, 10.0], [40.0]], 5)
        # the pair's variance is 8; an episode's, over all three policies 20, is a fifth of that in a mean
        assert found is not None and found.freedom == 1 and found.within == pytest.approx(math.sqrt(20))
        assert found.between == pytest.approx(math.sqrt(8 - 20 / 5))

    def test_single_seeds_say_nothing(self) -> None:
        assert scaling.scatter([[1.0], [2.0]], [[1.0], [1.0]], 5) is None and scaling.scatter([], [], 5) is None


class TestBudget:
    def test_the_closed_form_is_the_least_of_a_grid(self) -> None:
        train, episode, between, within, budget = 200.0, 0.4, 6.0, 39.0, 900.0
        episodes = np.arange(1.0, 3000)
        seeds = budget / (train + episodes * episode)
        best = episodes[scaling.standard_error(between, within, seeds, episodes).argmin()]
        assert abs(best - scaling.best_episodes(train, episode, between, within)) < 1
        assert scaling.best_episodes(train, episode, 0.0, within) == math.inf

    def test_the_standard_error_is_that_of_drawn_means(self) -> None:
        draw = np.random.default_rng(1)
        true = 5 * draw.normal(size=(20_000, 3, 1))
        means = (true + 30 * draw.normal(size=(20_000, 3, 8))).mean((1, 2))
        assert means.std() == pytest.approx(float(scaling.standard_error(5, 30, 3, 8)), rel=0.03)

    def test_a_split_of_the_budget(self) -> None:
        price = {"train": 200.0, "episode": 0.5}
        found = scaling.split(price, 6.0, 39.0, 3, 50, at=[50, 100])
        assert found.errors[0] == found.given == pytest.approx(math.sqrt(36 / 3 + 39**2 / 150))
        assert found.seeds * (200 + 0.5 * found.episodes) == pytest.approx(3 * 225)
        assert found.least < min(found.errors) and found.episodes == pytest.approx(20 * 6.5)

    def test_prices(self) -> None:
        [job, *_] = make_jobs(find_cells(["hopper/hopper-medium/dmm"]), "small", Path("runs"), Path("rows"))
        parts = {"updates": 1.0, "earlier models": 0.5, "actions": 2.0, "simulator": 3.0}
        everywhere, last = (scaling.describe_mean(job, parts, every) for every in (True, False))
        assert everywhere == {"train": 5400.0, "episode": 360.0}
        assert last["episode"] == pytest.approx(360.0 / 10 / 2)


def test_updates_are_timed_for_each_model_and_context() -> None:
    found = scaling.update_seconds(("dmm", "dt"), (2, 4), time_steps=8, repeats=1, width=8, layers=1)
    assert list(found) == ["dmm", "dt"] and all(len(times) == 2 and min(times) > 0 for times in found.values())
