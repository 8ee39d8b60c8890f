"""Episodes in a row of held-out tasks: against a loop over one task that knows nothing of the others."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from dmm.cli import main
from dmm.data.collect import collect
from dmm.data.trajectories import load_trajectories
from dmm.envs.tasks import evaluation_tasks, is_held_out
from dmm.errors import InputError
from dmm.evaluation import bootstrap_interval, evaluate, make_env
from dmm.evaluation_in_context import ROWS, Mean
from dmm.policy import Outcome, Wanted
from dmm.training import Run, load_run, train

HISTORIES = {
    "Darkroom": "dmm/darkroom/histories-v0",
    "DarkroomHard": "dmm/darkroom-hard/histories-v0",
    "KeyToDoor": "dmm/keytodoor/histories-v0",
    "DarkroomDynamic": "dmm/darkroom-dynamic/histories-v0",
}
IN_CONTEXT = ("dmh", "hdt", "ad", "ad-mamba", "at", "dpt")
TINY = {"width": 8, "layers": 1, "batch_size": 2, "log_every": 1, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of two updates on a few episodes of a data set."""
    folder = tmp_path_factory.mktemp("in-context")

    def make(dataset: str, model: str) -> Run:
        out = folder / dataset.replace("/", "-") / model
        if out.exists():
            return load_run(out)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MINARI_DATASETS_PATH", str(folder / "data"))
            collect(dataset, transitions=2_000, workers=1, progress=False)
            data = load_trajectories(dataset)
        return train(data, model, steps=2, out=out, changes=TINY, progress=False)

    return make


def alone(run: Run, task: dict[str, Any], number: int, episodes: int, seed: int) -> list[float]:
    """Episodes of one task, played by nothing but the policy and its environment."""
    env, policy = make_env(run.info), run.policy.eval()
    target, found = run.info["dataset"]["max_return"], []
    generator, begins = torch.Generator().manual_seed(seed), seed + number * episodes
    asked = Wanted(target, None, generator, torch.tensor([begins]))
    state, reward, none = policy.init_state(1, asked), None, torch.zeros(1, dtype=torch.int64)
    for episode in range(episodes):
        observation, _ = env.reset(seed=begins + episode, options=task)
        over, total = False, 0.0
        while not over:
            action, state = policy.act(state, torch.from_numpy(observation)[None], reward)
            observation, earned, terminated, truncated, _ = env.step(action[0].numpy())
            reward, over, total = torch.tensor([float(earned)]), terminated or truncated, total + float(earned)
        assert reward is not None
        outcome = Outcome(reward, torch.tensor([terminated]), torch.from_numpy(observation)[None])
        state = policy.next_episode(state, none, asked, outcome)
        reward = torch.zeros(1)
        found.append(total)
    return found


@pytest.mark.parametrize("model", IN_CONTEXT)
def test_tasks_at_once_are_each_alone(make_run: Any, model: str) -> None:
    run = make_run(HISTORIES["Darkroom"], model)
    found = evaluate(run, episodes_in_context=3, tasks=4, seed=7, progress=False)
    tasks = evaluation_tasks(make_env(run.info), 4, np.random.default_rng(7))
    assert list(found.tasks) == tasks and found.memory == "kept" and found.hidden == ("goal",)
    for j, task in enumerate(tasks):
        assert found.returns[j].tolist() == alone(run, task, j, 3, 7)
    assert np.array_equal(
        evaluate(run, episodes_in_context=3, tasks=4, seed=7, environments=3, progress=False).returns, found.returns
    )


def test_tasks_that_look_alike_draw_apart(make_run: Any) -> None:
    """Before the first reward all tasks look the same; if they drew alike, all would explore along one path."""
    run = make_run(HISTORIES["Darkroom"], "ad-mamba")
    policy, numbers = run.policy, torch.arange(200)
    state = policy.init_state(200, Wanted(20.0, None, torch.Generator().manual_seed(0), numbers))
    action, _ = policy.act(state, torch.full((200, 2), 4.0))
    assert action.sum(dim=0).min() > 200 / 5 - 5 * (200 * 0.2 * 0.8) ** 0.5  # five standard deviations


@pytest.mark.parametrize("room", HISTORIES)
@pytest.mark.parametrize("model", ["dmh", "ad-mamba"])
def test_each_room_has_its_held_out_tasks(make_run: Any, room: str, model: str) -> None:
    found = evaluate(make_run(HISTORIES[room], model), episodes_in_context=2, tasks=3, progress=False)
    assert found.returns.shape == (3, 2)
    assert all(is_held_out(name, value) for task in found.tasks for name, value in task.items())
    assert {name for task in found.tasks for name in task} == set(found.hidden)
    assert found.best_possible is not None and found.best_possible >= found.returns.max(axis=1).mean()


def test_all_held_out_goals_of_the_dark_room(make_run: Any) -> None:
    found = evaluate(make_run(HISTORIES["Darkroom"], "ad-mamba"), episodes_in_context=2, progress=False)
    assert len(found.tasks) == 16 and found.best_possible == 16.625
    distances = [abs(x - 4) + abs(y - 4) for x, y in (task["goal"] for task in found.tasks)]
    assert np.mean([20 if d == 0 else 21 - d for d in distances]) == 16.625
    assert found.reference == (pytest.approx(20 / 81), pytest.approx(1340 / 81))


def test_a_policy_that_does_not_learn_in_context_is_a_control(make_run: Any) -> None:
    run = make_run(HISTORIES["Darkroom"], "dt")
    found = evaluate(run, episodes_in_context=2, tasks=5, progress=False)
    assert found.memory == "reset" and "a control that does not learn in context" in found.text()
    # the room always starts in its centre: without memory and draws each episode of a task is the first again
    assert np.array_equal(found.returns[:, 0], found.returns[:, 1])
    recurrent = make_run(HISTORIES["Darkroom"], "mamba")
    for acting in ("recurrent", "staggered"):
        kept = evaluate(recurrent, episodes_in_context=2, tasks=5, acting=acting, states=1, progress=False)
        assert kept.memory == "reset" and kept.states == (1 if acting == "staggered" else None)


def test_an_environment_that_hides_nothing_is_one_task(make_run: Any) -> None:
    run = make_run("dmm/tmaze/noisy-v0", "ad-mamba")
    found = evaluate(run, episodes_in_context=2, progress=False)
    assert found.returns.shape == (ROWS, 2) and found.hidden == () and found.tasks == ({},) * ROWS
    assert found.best_possible == 1.0 and "rows of the one task" in found.text()
    assert evaluate(run, episodes_in_context=1, tasks=3, max_steps=5, progress=False).best_possible == 0.0


def test_numbers_by_hand(make_run: Any) -> None:
    import dataclasses

    found = evaluate(make_run(HISTORIES["Darkroom"], "ad-mamba"), episodes_in_context=3, tasks=2, progress=False)
    found = dataclasses.replace(found, returns=np.array([[0.0, 8.0, 4.0], [2.0, 1.0, 12.0]]), reference=(2.0, 4.0))
    assert (found.first.mean, found.last.mean, found.best.mean, found.improvement.mean) == (1.0, 8.0, 10.0, 7.0)
    assert found.improvement.ci95 == (4.0, 10.0) and [each.mean for each in found.per_episode] == [1.0, 4.5, 8.0]
    said = json.loads(json.dumps(found.to_json()))
    assert said["returns"] == [[0, 8, 4], [2, 1, 12]] and said["improvement"] == {"mean": 7.0, "ci95": [4.0, 10.0]}
    assert said["normalized_score"] == 300.0 and said["ci95"] == [100.0, 500.0]
    assert (said["random"], said["episodes_in_context"], said["memory"]) == (2.0, 3, "kept")
    assert found.text().splitlines()[3:] == [
        "1             1 [0, 2]",
        "2             4.5 [1, 8]",
        "3             8 [4, 12]",
        "last - first  7 [4, 10]",
        "best of each  10 [8, 12]",
        "random actions: 2",
        f"best possible: {found.best_possible:.4g}",
    ]
    values = np.array([1.0, 2.0, 4.0])
    assert Mean.of(values).ci95 == bootstrap_interval(values)


def test_the_command(make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(HISTORIES["Darkroom"], "ad-mamba")
    arguments = ["evaluate", str(run.path), "--episodes-in-context", "2", "--tasks", "3"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert ended.value.code in (0, None) and np.array(said["returns"]).shape == (3, 2)
    assert {"dataset", "model", "seed", "targets", "returns", "normalized_score", "ci95"} <= set(said)
    with pytest.raises(SystemExit):
        main(arguments)
    shown = capsys.readouterr().out
    assert "3 held-out tasks (goal), 2 episodes in a row each" in shown and "memory kept" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes_in_context": 0}, "episodes_in_context: got 0, allowed is a whole number of at least 1"),
        ({"episodes_in_context": 2.5}, "episodes_in_context: got 2.5"),
        ({"episodes_in_context": 2, "tasks": 0}, "tasks: got 0, allowed is a whole number of at least 1"),
        ({"tasks": 3}, "tasks: got 3, allowed only with episodes_in_context"),
        ({"episodes_in_context": 2, "targets": [1, 2]}, "targets: got 2, allowed is one with episodes_in_context"),
        ({"episodes_in_context": 2, "acting": "staggered"}, "acting: got 'staggered'"),
        ({"episodes_in_context": 2, "max_steps": 0}, "max_steps: got 0"),
    ],
)
def test_bad_input(make_run: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        evaluate(make_run(HISTORIES["Darkroom"], "ad-mamba"), progress=False, **options)


def test_there_are_no_more_tasks_than_are_held_out(make_run: Any) -> None:
    run = make_run(HISTORIES["Darkroom"], "ad-mamba")
    assert len(evaluate(run, episodes_in_context=1, tasks=20, max_steps=1, progress=False).tasks) == 16


def test_delayed_rewards_cannot_be_learned_from(make_run: Any) -> None:
    run = make_run(HISTORIES["Darkroom"], "ad-mamba")
    run.info["dataset"]["delayed_rewards"] = True
    with pytest.raises(InputError, match=r"^episodes_in_context: got 2 for a ad-mamba of delayed rewards"):
        evaluate(run, episodes_in_context=2, progress=False)
