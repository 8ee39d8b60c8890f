"""Dark rooms and the T-maze: learning histories and a noisy scripted agent, for in-context learning and memory.

The returns in `reference` are exact averages over tasks (and starts), of uniformly random actions and of an agent that
knows the task; the tests of the environments work them out again.
"""

from __future__ import annotations

import functools

from dmm.data.policies.corridor import CorridorWalker
from dmm.data.policies.learners import DynaLearner
from dmm.data.recipes.recipe import Recipe

_LEARNER = "tabular Dyna-Q, from random actions to near-optimal ones"

RECIPES = (
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
        name="dmm/keytodoor/histories-v0",
        env_id="dmm/KeyToDoor-v0",
        transitions=400_000,
        stages=(functools.partial(DynaLearner, 9, episodes=50, task=("key", "door"), rewards=3),),
        block=50 * 50,
        behaviour_name=f"{_LEARNER}, 50 episodes of each task",
        description="A dark 9 x 9 room; reward 1 for a key, then 1 for a door, neither of which can be seen; 50 steps.",
        reference=(0.24993908064472742, 2.0),  # random: a Markov chain for each pair of key and door
        histories=True,
    ),
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
)
