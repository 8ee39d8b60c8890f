"""Mazes: a point mass and an ant, led by waypoints, after D4RL's maze sets."""

from __future__ import annotations

import functools

from dmm.data.policies.ant import AntWalker
from dmm.data.policies.waypoints import MazeWalker
from dmm.data.recipes.recipe import Recipe
from dmm.data.scores import reference_returns

RECIPES = (
    Recipe(
        name="dmm/pointmaze/umaze-v0",
        env_id="PointMaze_UMaze-v3",
        env_kwargs={"continuing_task": False, "reward_type": "sparse", "max_episode_steps": 150},
        transitions=100_000,
        behaviour=functools.partial(MazeWalker, seek_probability=0.3, noise=0.5),
        behaviour_name="waypoints to the goal in 30 % of the episodes, else a random walk over cells; action noise 0.5",
        description="A point mass in a U-shaped maze; reward 1 at the goal, which ends the episode; 150 steps at most.",
        observation_keys=("observation", "desired_goal"),
        reference=(0.0, 1.0),  # the score is the share of episodes that arrive
    ),
    Recipe(
        name="dmm/pointmaze/medium-v0",
        env_id="PointMaze_Medium-v3",
        env_kwargs={"continuing_task": False, "reward_type": "sparse", "max_episode_steps": 300},
        transitions=200_000,
        behaviour=functools.partial(MazeWalker, seek_probability=0.45, noise=0.5),
        behaviour_name="waypoints to the goal in 45 % of the episodes, else a random walk over cells; action noise 0.5",
        description="A point mass in a larger maze; reward 1 at the goal, which ends the episode; 300 steps at most.",
        observation_keys=("observation", "desired_goal"),
        reference=(0.0, 1.0),
    ),
    Recipe(
        name="dmm/antmaze/umaze-v0",
        env_id="dmm/AntMaze-v0",
        env_kwargs={"maze": "umaze"},
        transitions=1_000_000,
        behaviour=functools.partial(AntWalker, noise=0.2),
        behaviour_name="a CrossQ policy that walks where told, led by waypoints to the goal; action noise 0.2",
        description="An ant in a U-shaped maze, from one end to the other, after D4RL's antmaze-umaze; reward 1 at the "
        "goal, which ends the episode; 700 steps at most.",
        observation_keys=("achieved_goal", "observation"),  # D4RL's 29 numbers: where the ant is, but not the goal
        reference=reference_returns("dmm/AntMaze-v0"),
    ),
    Recipe(
        name="dmm/antmaze/umaze-diverse-v0",
        env_id="dmm/AntMaze-v0",
        env_kwargs={"maze": "umaze-diverse"},
        eval_kwargs={"maze": "umaze"},  # as D4RL does: the state does not show a drawn goal
        transitions=1_000_000,
        behaviour=functools.partial(AntWalker, noise=0.2),
        behaviour_name="a CrossQ policy that walks where told, led by waypoints to the goal; action noise 0.2",
        description="An ant in a U-shaped maze, from random starts to random goals, after D4RL's "
        "antmaze-umaze-diverse; reward 1 at the goal, which ends the episode; 700 steps at most.",
        observation_keys=("achieved_goal", "observation"),
        reference=reference_returns("dmm/AntMaze-v0"),
    ),
)
