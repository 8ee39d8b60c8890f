"""Recipes: data sets that are made on the reader's machine from a behaviour, an environment and a seed."""

from __future__ import annotations

import difflib

from dmm.data.recipes import grids, kitchen, mazes, mujoco
from dmm.data.recipes.recipe import Behaviour, Learner, Recipe
from dmm.errors import InputError

__all__ = ["RECIPES", "Behaviour", "Learner", "Recipe", "find_recipe"]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (*mujoco.RECIPES, *mazes.RECIPES, *kitchen.RECIPES, *grids.RECIPES)
}
"""Every recipe by its Minari id."""


def find_recipe(name: str) -> Recipe:
    """The recipe of that Minari id.

    Raises:
        InputError: no such recipe.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise InputError(f"name: no recipe {name!r}; {hint}`dmm datasets` lists them all")
    return RECIPES[name]
