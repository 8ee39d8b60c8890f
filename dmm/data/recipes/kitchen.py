"""Kitchen: a robot arm does four household tasks, after D4RL's three kitchen sets.

D4RL's sets are demonstrations by people, of four tasks each out of seven. 19 of them are complete; about 600 are both
partial and mixed, which differ only in the four tasks that count. These sets are made by a scripted expert and keep
what makes the three differ:

- complete: every episode does the four tasks that count, in one order.
- partial: every episode sets out to do four tasks of five. In a ninth of the episodes those are the four that count; in
  the others one of the four is left out for the bottom burner, which does not count. One task in ten is given up, so
  about 7 % of the episodes solve all four.
- mixed: the same, but no episode sets out to do all four that count: one of them is always left out for the slide
  cabinet. All four can only be stitched together.

People have habits, and so has this expert: three times in four it does its tasks in the order of its list, otherwise it
swaps two that follow each other (the four that count are always done in order). If every order were as likely, the next
task could not be told from the state, and a model trained with a squared error would go for the average of them all.

What is unlike D4RL: five tasks instead of seven, and white noise on the actions instead of a person's hand. And where a
person's recording stopped after the last task, these go on at rest until the limit of 280 steps, unless all four tasks
are complete, which ends an episode as it does in evaluation. Rewards are stored as D4RL stores them: the sum so far.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

from dmm.data.policies.kitchen import MOVES, KitchenExpert
from dmm.data.recipes.recipe import Behaviour, Recipe
from dmm.data.scores import reference_returns

COMPLETE_TASKS = ("microwave", "kettle", "light switch", "slide cabinet")
MIXED_TASKS = ("microwave", "kettle", "bottom burner", "light switch")
"""The tasks that count, in D4RL's order; those of complete also count in partial."""

Orders = tuple[tuple[str, ...], ...]


def orders_without(tasks: tuple[str, ...]) -> Orders:
    """Four of the expert's five tasks, but not `tasks`: nine times in the usual order, and once with each swap."""
    choices = [choice for choice in itertools.combinations(MOVES, 4) if set(choice) != set(tasks)]
    return tuple(order for choice in choices for order in (*9 * (choice,), *_swaps(choice)))


def _swaps(order: tuple[str, ...]) -> Orders:
    """The orders in which two tasks that follow each other have changed places."""
    return tuple((*order[:i], order[i + 1], order[i], *order[i + 2 :]) for i in range(len(order) - 1))


PARTIAL_ORDERS: Orders = (*6 * (COMPLETE_TASKS,), *orders_without(COMPLETE_TASKS))
MIXED_ORDERS: Orders = orders_without(MIXED_TASKS)
"""Each as likely as the others: 54 orders, and 48."""


def _recipe(
    name: str, tasks: tuple[str, ...], size: int, expert: Callable[[], Behaviour], behaviour: str, description: str
) -> Recipe:
    return Recipe(
        name=f"dmm/kitchen/{name}-v0",
        env_id="dmm/Kitchen-v0",
        env_kwargs={"tasks": tasks},
        transitions=size,
        behaviour=expert,
        behaviour_name=behaviour,
        description=description,
        rewards="cumulative",
        reference=reference_returns("dmm/Kitchen-v0"),
    )


_VARIED = functools.partial(KitchenExpert, noise=0.1, pace=(0.7, 1.0), gives_up=0.1)

RECIPES = (
    _recipe(
        "complete",
        COMPLETE_TASKS,
        3_680,
        functools.partial(KitchenExpert, orders=(COMPLETE_TASKS,), noise=0.05, pace=(0.7, 1.0)),
        "a scripted expert that does all four tasks in one order, at 70 to 100 % of its speed; action noise 0.05",
        "Microwave, kettle, light switch and slide cabinet, done one after the other in every episode, "
        "after D4RL's kitchen-complete.",
    ),
    _recipe(
        "partial",
        COMPLETE_TASKS,
        136_950,
        functools.partial(_VARIED, orders=PARTIAL_ORDERS),
        "a scripted expert that sets out to do four of five tasks, in 11 % of the episodes the four that count; "
        "gives up 10 % of the tasks; 70 to 100 % of its speed; action noise 0.1",
        "Microwave, kettle, light switch and slide cabinet count; few episodes do all four, "
        "most set out to turn on a burner instead of one, after D4RL's kitchen-partial.",
    ),
    _recipe(
        "mixed",
        MIXED_TASKS,
        136_950,
        functools.partial(_VARIED, orders=MIXED_ORDERS),
        "a scripted expert that sets out to do four of five tasks, never the four that count; "
        "gives up 10 % of the tasks; 70 to 100 % of its speed; action noise 0.1",
        "Microwave, kettle, bottom burner and light switch count; no episode does all four, "
        "every one sets out to open a cabinet instead of one, after D4RL's kitchen-mixed.",
    ),
)
