"""The first episodes of a recipe, in memory: for looking at a data set without making it."""

from __future__ import annotations

from contextlib import closing
from itertools import islice

import gymnasium as gym
import numpy as np

from dmm.data.actions import unit_actions
from dmm.data.environments import environment_record
from dmm.data.observations import build_env, flatten_actions, flatten_observation
from dmm.data.recipes import find_recipe
from dmm.data.rollout import RecordedEpisode, record
from dmm.data.trajectories import Trajectories
from dmm.errors import whole_number


def preview(name: str, episodes: int, *, seed: int = 0, transitions: int | None = None) -> Trajectories:
    """The first `episodes` episodes that `collect(name, seed=seed)` records, without writing a data set.

    Args:
        transitions: size of the set whose beginning is wanted, the recipe's own if left out; it matters where several
            behaviours share the set.

    Raises:
        InputError: unknown recipe, or `episodes` below 1.
    """
    episodes, seed = whole_number("episodes", episodes, 1), whole_number("seed", seed, 0)
    recipe = find_recipe(name)
    wanted = recipe.transitions if transitions is None else whole_number("transitions", transitions, 1)
    with closing(record(recipe, seed, 1, wanted)) as stream:
        recorded = list(islice(stream, episodes))
    env = build_env(recipe.env_id, **{**recipe.env_kwargs, **recipe.eval_kwargs})
    spec, space, environment = env.spec, env.action_space, environment_record(env)
    env.close()
    actions, bounds = np.concatenate([flatten_actions(episode.actions, space) for episode in recorded]), None
    if isinstance(space, gym.spaces.Box):
        actions, bounds = unit_actions(actions, space, name)
    lengths = np.array([len(episode.rewards) for episode in recorded], dtype=np.int64)
    return Trajectories(
        observations=np.concatenate([_states(episode, recipe.observation_keys) for episode in recorded]),
        actions=actions,
        rewards=np.concatenate([episode.rewards.astype(np.float32) for episode in recorded]),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        terminated=np.array([episode.terminated for episode in recorded]),
        dataset_id=name,
        env_id=recipe.env_id,
        observation_keys=recipe.observation_keys,
        reference=recipe.reference,
        env_spec=spec.to_json() if spec else None,
        environment=environment,
        discrete_actions=isinstance(space, gym.spaces.Discrete),
        action_bounds=bounds,
        histories=np.array([episode.block for episode in recorded]) if recipe.histories else None,
    )


def _states(episode: RecordedEpisode, keys: tuple[str, ...]) -> np.ndarray:
    return flatten_observation(episode.observations, keys)[:-1]
