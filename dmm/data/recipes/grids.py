"""Dark rooms and T-mazes: learning histories and a noisy scripted agent, for in-context learning and memory.

Histories are of two learners: a tabular one that learns in few episodes, in all rooms, and DQN, the kind that Algorithm
Distillation and Decision Mamba-Hybrid learn from, in the small ones. As in the latter paper DQN's are of 60 tasks; they
are shorter than its million steps. Which tasks a history may be about is said in `dmm.envs.tasks`.

The returns in `reference` are exact averages over tasks (and starts), of uniformly random actions and of an agent that
knows the task; the tests of the environments work them out again.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from dmm.data.policies.corridor import CorridorWalker
from dmm.data.policies.learners import DynaLearner
from dmm.data.recipes.recipe import Learner, Recipe

_LEARNER = "tabular Dyna-Q, from random actions to near-optimal ones"
_DQN = "DQN (Stable-Baselines3), from random actions to greedy ones"
_KEY = ("key", "door")
_MOVES = ("permutation",)

_ROOMS = (
    Recipe(
        name="dmm/darkroom/histories-v0",
        env_id="dmm/Darkroom-v0",
        transitions=200_000,
        stages=(functools.partial(DynaLearner, 9, episodes=50, optimism=10.5, exploring=0.6),),
        block=50 * 20,
        behaviour_name=f"{_LEARNER}, 50 episodes of each task",
        description="A dark 9 x 9 room; reward 1 on each step on a goal that cannot be seen; 20 steps.",
        # random: 20 steps, each on the goal in 1 of 81 rooms; best: 21 - max(distance from the centre, 1)
        reference=(20 / 81, 1340 / 81),
        histories=True,
    ),
    Recipe(
        name="dmm/darkroom-hard/histories-v0",
        env_id="dmm/DarkroomHard-v0",
        transitions=200_000,
        stages=(functools.partial(DynaLearner, 9, episodes=50, rewards=2),),
        block=50 * 20,
        behaviour_name=f"{_LEARNER}, 50 episodes of each task",
        description="A dark 9 x 9 room; reward 1 for the first step on a goal that cannot be seen; 20 steps.",
        reference=(0.12577056214400298, 1.0),  # random: a Markov chain for each goal
        histories=True,
    ),
    Recipe(
        name="dmm/darkroom-large/histories-v0",
        env_id="dmm/LargeDarkroom-v0",
        transitions=800_000,
        stages=(
            functools.partial(DynaLearner, 40, episodes=80, discount=0.98, optimism=26.0, sweeps=20, exploring=0.4),
        ),
        block=80 * 200,
        behaviour_name=f"{_LEARNER}, 80 episodes of each task",
        description="A dark 40 x 40 room; reward 1 on each step on a goal that cannot be seen; 200 steps.",
        # random: 200 steps, each on the goal in 1 of 1600 rooms; best: 201 - max(distance from the centre, 1)
        reference=(0.125, 180.999375),
        histories=True,
    ),
    Recipe(
        name="dmm/darkroom-large-hard/histories-v0",
        env_id="dmm/LargeDarkroomHard-v0",
        transitions=800_000,
        stages=(functools.partial(DynaLearner, 40, episodes=80, rewards=2, discount=0.98, sweeps=20, exploring=0.4),),
        block=80 * 200,
        behaviour_name=f"{_LEARNER}, 80 episodes of each task",
        description="A dark 40 x 40 room; reward 1 for the first step on a goal that cannot be seen; 200 steps.",
        reference=(0.04559077373020623, 1.0),  # random: a Markov chain for each goal
        histories=True,
    ),
    Recipe(
        name="dmm/keytodoor/histories-v0",
        env_id="dmm/KeyToDoor-v0",
        transitions=400_000,
        stages=(functools.partial(DynaLearner, 9, episodes=50, task=_KEY, rewards=3),),
        block=50 * 50,
        behaviour_name=f"{_LEARNER}, 50 episodes of each task",
        description="A dark 9 x 9 room; reward 1 for a key, then 1 for a door, neither of which can be seen; 50 steps.",
        reference=(0.24993908064472742, 2.0),  # random: a Markov chain for each pair of key and door
        histories=True,
        version=2,  # keys are held out, too
    ),
    Recipe(
        name="dmm/keytodoor-large/histories-v0",
        env_id="dmm/LargeKeyToDoor-v0",
        transitions=1_200_000,
        stages=(
            functools.partial(
                DynaLearner, 40, episodes=60, task=_KEY, rewards=3, discount=0.98, sweeps=20, exploring=0.4
            ),
        ),
        block=60 * 500,
        behaviour_name=f"{_LEARNER}, 60 episodes of each task",
        description="A dark 40 x 40 room; reward 1 for a key, then 1 for a door, neither to be seen; 500 steps.",
        reference=(0.09375496862149243, 2.0),  # random: a Markov chain for each pair of key and door
        histories=True,
    ),
    Recipe(
        name="dmm/darkroom-dynamic/histories-v0",
        env_id="dmm/DarkroomDynamic-v0",
        transitions=200_000,
        stages=(functools.partial(DynaLearner, 9, episodes=50, task=_MOVES, optimism=10.5, exploring=0.6),),
        block=50 * 20,
        behaviour_name=f"{_LEARNER}, 50 episodes of each task",
        description="A dark 9 x 9 room; reward 1 on each step in a corner; what actions do is hidden; 20 steps.",
        # random: a Markov chain; best: 21 - 8, the distance from the centre to the corner
        reference=(0.041494187415657566, 13.0),
        histories=True,
    ),
    Recipe(
        name="dmm/darkroom-large-dynamic/histories-v0",
        env_id="dmm/LargeDarkroomDynamic-v0",
        transitions=800_000,
        stages=(
            functools.partial(
                DynaLearner, 40, episodes=80, task=_MOVES, discount=0.98, optimism=26.0, sweeps=20, exploring=0.4
            ),
        ),
        block=80 * 200,
        behaviour_name=f"{_LEARNER}, 80 episodes of each task",
        description="A dark 40 x 40 room; reward 1 on each step in a corner; what actions do is hidden; 200 steps.",
        # random: a Markov chain; best: 201 - 38
        reference=(0.002434811669214387, 163.0),
        histories=True,
    ),
)


def _dqn_learner(*sizes: int, **how: Any) -> Learner:
    """Imported here, because it needs torch, which all other behaviours, and whoever lists recipes, do without."""
    from dmm.data.policies.dqn import DQNLearner

    return DQNLearner(*sizes, **how)


def _by_dqn(histories: Recipe, steps: int, **how: Any) -> Recipe:
    """Histories of 200 episodes of 60 tasks of the room of the tabular ones."""
    block = 200 * steps
    return dataclasses.replace(
        histories,
        name=histories.name.replace("histories", "dqn"),
        transitions=60 * block,
        stages=(functools.partial(_dqn_learner, 9, 200, steps, **how),),
        block=block,
        behaviour_name=f"{_DQN}, 200 episodes of each task",
        description=f"{histories.description} Learned by DQN.",
        packages=("torch", "stable-baselines3"),
        version=1,
    )


def _long_maze(steps: int, episodes: int) -> Recipe:
    """The T-maze at one of the paper's horizons, with so little noise that as many walkers as in the short one keep
    step: at 0.4 random actions an episode, 74 % of them."""
    return Recipe(
        name=f"dmm/tmaze/noisy-{steps}-v0",
        env_id="dmm/TMaze-v0",
        # the limit lies behind the end that the maze has: who plays it need not set one (`faults.STEP_LIMIT`)
        env_kwargs={"length": steps - 1, "max_episode_steps": steps + 1},
        transitions=steps * episodes,
        behaviour=functools.partial(CorridorWalker, recall=0.5, noise=0.4 / (steps - 1)),
        behaviour_name="walks the corridor; turns as the cue said in half of the episodes, else at random; "
        f"noise 0.4 in {steps - 1:,} steps",
        description=f"A corridor of {steps - 1:,} steps; reward 1 for the turn that the first observation named; "
        f"{steps:,} steps.",
        reference=(0.25**steps, 1.0),  # 0: floats do not reach that far down
    )


# steps of an episode, and how many episodes
_HORIZONS = ((1_000, 200), (2_000, 200), (5_000, 200), (10_000, 100), (20_000, 100))
_BY_NAME = {recipe.name: recipe for recipe in _ROOMS}

RECIPES = (
    *_ROOMS,
    _by_dqn(_BY_NAME["dmm/darkroom/histories-v0"], 20),
    _by_dqn(_BY_NAME["dmm/darkroom-hard/histories-v0"], 20, rewards=2),
    _by_dqn(_BY_NAME["dmm/keytodoor/histories-v0"], 50, task=_KEY, rewards=3),
    Recipe(
        name="dmm/tmaze/noisy-v0",
        env_id="dmm/TMaze-v0",
        env_kwargs={"length": 20},
        transitions=100_000,
        behaviour=functools.partial(CorridorWalker, recall=0.5, noise=0.02),
        behaviour_name="walks the corridor; turns as the cue said in half of the episodes, else at random; noise 2 %",
        description="A corridor of 20 steps; reward 1 for the turn that the first observation named; 21 steps.",
        reference=(0.25**21, 1.0),  # no step to spare: one sequence of 21 actions out of 4^21 gets the reward
    ),
    *(_long_maze(steps, episodes) for steps, episodes in _HORIZONS),
)
