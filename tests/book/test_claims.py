"""Sentences that state a result, held against the result file that they speak of.

A page that can compute such a sentence does so in a cell. Where it is written by hand, the words stand here beside what
must hold in the file, so that neither can change alone: a file that is remade fails its test until the page says what
it says, and a sentence that is rewritten is looked up again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from dmm.experiments import load_result
from dmm.experiments.grid import mean_interval
from dmm.inspection import MODALITIES
from tests.book.prose import pages

TASKS = ("pointmaze", "hopper")
MODELS = ("mamba", "dt", "dmm")


def ratio_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a geometric mean over seeds."""
    low, high = np.exp(mean_interval(np.log(values))["ci95"])
    return float(low), float(high)


# Chapter 5


def gating_runs(task: str, model: str) -> list[dict[str, Any]]:
    return [run for run in load_result("gating")["runs"] if (run["task"], run["model"]) == (task, model)]


def of(tokens: list[float], modality: str) -> float:
    """Mean over the time steps but the last, as the chapter takes it."""
    return float(np.mean(tokens[MODALITIES.index(modality) : -3 : 3]))


def passes(run: dict[str, Any], modality: str) -> float:
    return float(np.exp(np.mean([np.log(of(run["gates"][f"layer {i}"], modality)) for i in (1, 2, 3)])))


def ratios(task: str, model: str, kind: str, stage: str, above: str, below: str = "action") -> list[float]:
    return [of(run[kind][stage], above) / of(run[kind][stage], below) for run in gating_runs(task, model)]


def states_get_through_best() -> bool:
    return all(
        ratio_interval([passes(run, "state") / passes(run, other) for run in gating_runs(task, model)])[0] > 1
        for task, model, other in product(TASKS, ("mamba", "dmm"), ("rtg", "action"))
    )


def states_are_nowhere_small() -> bool:
    """At no stage is the mean ratio a half or less; one interval is too wide to say more."""
    return all(
        float(np.exp(np.mean(np.log(ratios(task, model, "norms", stage, "state"))))) > 0.5
        for task, model in product(TASKS, MODELS)
        for stage in gating_runs(task, model)[0]["norms"]
    )


def no_gradient_is_below_a_tenth() -> bool:
    return all(
        ratio_interval(ratios(task, model, "gradients", objective, modality))[0] > 0.1
        for task, model, objective, modality in product(TASKS, ("mamba", "dt"), ("action", "loss"), ("state", "rtg"))
    )


def disparity(task: str, model: str, modality: str) -> np.ndarray[Any, Any]:
    return np.exp(np.abs(np.log(ratios(task, model, "gradients", "action", modality))))


def disparity_is_smaller_in_two_of_four() -> bool:
    smaller = {
        (task, modality)
        for task, modality in product(TASKS, ("state", "rtg"))
        if ratio_interval(disparity(task, "dmm", modality) / disparity(task, "mamba", modality))[1] <= 1
    }
    return smaller == {("pointmaze", "rtg"), ("hopper", "state")}


def near_has_larger_gradients(model: str) -> bool:
    shares = [
        [sum(run["gradients"]["action"][:3]) / sum(run["gradients"]["action"][18:21]) for run in gating_runs(t, model)]
        for t in TASKS
    ]
    return all(ratio_interval(share)[1] < 1 for share in shares)


# Chapters 6 and 8


def scores_of(result: dict[str, Any], name: str, target: float) -> list[float]:
    return [
        score["normalized_score"]
        for run in result["runs"]
        if run["name"] == name
        for score in run["scores"]
        if score["target"] == target
    ]


def asked_and_obeyed() -> bool:
    stored = load_result("pointmaze")
    level = stored["behaviour"]["mean"]
    return all(
        min(scores_of(stored, name, 1.0)) > level > max(scores_of(stored, name, 0.0))
        for name in ("dmm", "dmm-paper", "mamba")
    )


def pointmaze_intervals_overlap() -> bool:
    rows = {r["name"]: r["ci95"] for r in load_result("pointmaze")["summary"] if r["target"] == 1.0}
    return bool(max(rows["dmm"][0], rows["mamba"][0]) < min(rows["dmm"][1], rows["mamba"][1]))


def seeds_lie_further_apart_than_models() -> bool:
    stored = load_result("pointmaze")
    own = {name: scores_of(stored, name, 1.0) for name in ("dmm", "dmm-paper", "mamba")}
    spread = [max(scores) - min(scores) for scores in own.values()]
    means = [float(np.mean(scores)) for scores in own.values()]
    return min(spread) >= 10 - 0.5 and min(spread) > max(means) - min(means)


def more_training_or_fewer_layers_explain_nothing() -> bool:
    stored = load_result("pointmaze")
    (longer,), (smaller,) = (scores_of(stored, name, 1.0) for name in ("dmm, twice as long", "mamba, 3 layers"))
    own, stock = scores_of(stored, "dmm", 1.0), scores_of(stored, "mamba", 1.0)
    return min(own) <= longer <= max(own) and 0 < smaller - max(stock) <= 1


def hopper_checkpoints_jump() -> bool:
    for run in load_result("hopper")["runs"]:
        first = [checkpoint["scores"][0]["normalized_score"] for checkpoint in run["checkpoints"]]
        best = max(score["normalized_score"] for each in run["checkpoints"] for score in each["scores"])
        jumps = [abs(after - before) for before, after in pairwise(first)]
        if max(jumps) < 20 or best - first[-1] < 20:
            return False
    return True


def windows_from_three_on_reach_the_best() -> bool:
    rows = {int(r["name"][1:]): r["mean"] for r in load_result("windows")["summary"] if r["target"] == 1.0}
    failed = {int(r["name"][1:]): r["mean"] for r in load_result("windows")["summary"] if r["target"] == 0.0}
    return max(rows, key=rows.__getitem__) == 4 and all(rows[w] - failed[w] > 20 for w in rows)


# Chapters 9 and 15


def acting(way: str) -> list[dict[str, Any]]:
    return [row for row in load_result("acting")["summary"] if row["way"] == way]


def staggered_states_keep_the_score() -> bool:
    return all(row["difference"]["ci95"][0] < 0 < row["difference"]["ci95"][1] for row in acting("staggered, m=4"))


def never_resetting_goes_both_ways() -> bool:
    apart = [run["ways"]["recurrent"]["difference"] for run in load_result("acting")["runs"]]
    return min(apart) < -5 and max(apart) > 5


def every_seed_loses_a_little() -> bool:
    apart = [
        run["ways"]["recurrent"]["difference"]
        for run in load_result("acting")["runs"]
        if (run["task"], run["context"]) == ("pointmaze", 24)
    ]
    return all(-10 < value < 0 for value in apart)


def seeds_of_a_task_disagree_with_either_context() -> bool:
    found = load_result("acting")["runs"]
    apart = {
        (context, run["task"]): [r["ways"]["recurrent"]["difference"] for r in found if same(r, run["task"], context)]
        for run in found
        for context in (8, 24)
    }
    return all(any(min(apart[c, t]) < 0 < max(apart[c, t]) for _, t in apart) for c in (8, 24))


def same(run: dict[str, Any], task: str, context: int) -> bool:
    return (run["task"], run["context"]) == (task, context)


def staggered_states_are_cheap() -> bool:
    """Two states take less than one and a half times one, four less than two, at 1,000 steps."""
    steps = load_result("acting")["latency"]["steps"]
    time = {(row["way"], row["context"]): row["microseconds"]["1000"] for row in steps}
    return all(
        time["staggered, m=2", k] < 1.5 * time["staggered, m=1", k]
        and time["staggered, m=4", k] < 2 * time["staggered, m=1", k]
        for k in (8, 24)
    )


# Chapters 10 and 17


def a_leak_costs_half_of_the_arrivals() -> bool:
    mean = {row["name"]: row["mean"] for row in load_result("flaws")["summary"]}
    return bool(0.4 < mean["leak, released"] / mean["leak, corrected"] < 0.6)


def relabelled_seeds_scatter_more_than_their_means() -> bool:
    result = load_result("flaws")
    own = [scores_of(result, name, 1.0) for name in ("reward, released", "reward, corrected", "no relabelling")]
    means = [float(np.mean(scores)) for scores in own]
    return min(max(scores) - min(scores) for scores in own) > max(means) - min(means)


def published_sizes_differ_a_hundredfold() -> bool:
    policies = load_result("table_costs")["policies"].items()
    updates = [policy["update"] for name, policy in policies if "published" in name]
    return max(updates) > 100 * min(updates)


# The live figures of chapters 5, 7 and 8, as the page plays them


def figure_row(part: str, run: str, **settings: Any) -> dict[str, Any]:
    """What the page earned in one case."""
    found = [row for row in load_result("page")[part] if run in row["run"] and settings.items() <= row.items()]
    (row,) = found
    page: dict[str, Any] = row["page"]
    return page


def without(task: str, model: str, cut: str = "nothing") -> dict[str, Any]:
    return figure_row("cuts", f"{task}-{model}-", cut=cut)


def below(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["ci95"][1] < other["ci95"][0])


CUT_MODELS = ("dmm", "mamba")


def states_are_least_done_without() -> bool:
    others = ("return-to-go tokens", "action tokens")
    falls = all(without("hopper", model, "state tokens")["steps"] < 25 for model in CUT_MODELS)
    lost = all(without("pointmaze", model, "state tokens")["mean"] < 0.2 for model in CUT_MODELS)
    return (
        falls
        and lost
        and all(
            below(without(task, model, "state tokens"), without(task, model, other))
            for task, model, other in product(TASKS, CUT_MODELS, others)
        )
    )


def some_arrive_without_returns() -> bool:
    dmm, mamba = (without("pointmaze", model, "return-to-go tokens")["mean"] for model in CUT_MODELS)
    return bool(abs(dmm - 1 / 3) < 0.05 and 0.5 < mamba < 0.65)


def hopper_earns_more_without_returns() -> bool:
    pairs = [(without("hopper", m, "return-to-go tokens"), without("hopper", m)) for m in CUT_MODELS]
    return all(cut["mean"] > 1.33 * whole["mean"] and cut["steps"] > whole["steps"] for cut, whole in pairs)


def actions_are_missed_by_three() -> bool:
    missed = (("pointmaze", "dmm"), ("pointmaze", "mamba"), ("hopper", "mamba"))
    return all(below(without(*which, "action tokens"), without(*which)) for which in missed)


def hops_better_without(cut: str) -> bool:
    return below(without("hopper", "dmm"), without("hopper", "dmm", cut))


def nobody_goes_on_without_gates() -> bool:
    steps = [without("hopper", model, "all gates")["steps"] for model in CUT_MODELS]
    asked_nothing = figure_row("scores", "pointmaze", acting="recurrent", asked=0.0)["ci95"]
    wander = all(without("pointmaze", m, "all gates")["ci95"][0] < asked_nothing[1] for m in CUT_MODELS)
    return wander and all(abs(count - 200) < 20 for count in steps) and steps[0] > steps[1]


def cue(run: str, acting: str, padding: bool = True) -> dict[str, Any]:
    return figure_row("cue", run, acting=acting, padding=padding)


def turns_to_one_side() -> bool:
    """Two cues make two episodes, and those without memory earn the same in each of them, wherever they are played."""
    short, padded = cue("k8", "window"), cue("k21", "recurrent")
    return all(abs(each["mean"] - 0.5) < 0.1 for each in (short, padded))


def asked_for_one_then_nothing() -> bool:
    one, nothing = (figure_row("scores", "pointmaze", acting="recurrent", asked=asked)["mean"] for asked in (1.0, 0.0))
    then = figure_row("asked", "pointmaze", then=0.0)["mean"]
    return bool(abs(one - 5 / 6) < 0.05 and abs(then - 2 / 5) < 0.05 and 1 / 4 < nothing < 1 / 3)


def hopper_asked(asked: float) -> dict[str, Any]:
    return figure_row("asked", "hopper", asked=asked)


HOPPER_STEP = 0.008
"""Seconds."""


def asked_for_nothing_it_falls_sooner() -> bool:
    soon, late = (HOPPER_STEP * hopper_asked(asked)["steps"] for asked in (0.0, 3400.0))
    low, high = hopper_asked(0.0)["range"]
    return 2 < soon < 2.5 and 4 < late < 5 and high - low < 50


def less_it_does_not_give() -> bool:
    least = min(hopper_asked(asked)["range"][0] for asked in (0.0, 1000.0, 2000.0, 3400.0, 3800.0))
    return 930 < least < 950


def more_than_the_best_changes_little() -> bool:
    return not below(hopper_asked(3400.0), hopper_asked(3800.0)) and below(hopper_asked(0.0), hopper_asked(3400.0))


FIGURES: list[tuple[str, str, Callable[[], bool]]] = [
    ("05_gating", "In both worlds the states: Hopper falls in its first steps", states_are_least_done_without),
    ("05_gating", "one in three arrives without it with DMM, more than half with stock", some_arrive_without_returns),
    (
        "05_gating",
        "goes on for *longer* without it and earns a third more or better",
        hopper_earns_more_without_returns,
    ),
    (
        "05_gating",
        "The actions before are missed by both models in the maze and by stock Mamba on Hopper",
        actions_are_missed_by_three,
    ),
    ("05_gating", "DMM hops better without them.", lambda: hops_better_without("action tokens")),
    ("05_gating", "DMM a little later than Mamba", nobody_goes_on_without_gates),
    (
        "05_gating",
        "DMM hops better than as a whole, and loses its way in the maze",
        lambda: (
            hops_better_without("all local windows")
            and below(without("pointmaze", "dmm", "all local windows"), without("pointmaze", "dmm"))
        ),
    ),
    ("07_dmm_model", "half of the turns are right by luck", turns_to_one_side),
    ("07_dmm_model", "and every turn is right. The policies between", lambda: cue("k21", "window")["range"] == [1, 1]),
    (
        "07_dmm_model",
        "The other begins without padding, and every turn is right.",
        lambda: cue("k21", "recurrent", False)["range"] == [1, 1],
    ),
    ("08_training", "about five in six arrive", asked_for_one_then_nothing),
    ("08_training", "about two in five, against more than one in four", asked_for_one_then_nothing),
    (
        "08_training",
        "after little more than two seconds instead of between four and five",
        asked_for_nothing_it_falls_sooner,
    ),
    ("08_training", "less than some 940 it does not give", less_it_does_not_give),
    ("08_training", "Ask for more than the best, and little changes.", more_than_the_best_changes_little),
]

CLAIMS: list[tuple[str, str, Callable[[], bool]]] = [
    ("05_gating", "**States get through best**, in both models and tasks.", states_get_through_best),
    ("05_gating", "**Not so for states**, at no stage, in no model, in neither task", states_are_nowhere_small),
    ("05_gating", "**Not so**, in either task, for either objective.", no_gradient_is_below_a_tenth),
    (
        "05_gating",
        "**For returns-to-go in the maze and states on the hopper, yes**, moderately; for the other two it is open.",
        disparity_is_smaller_in_two_of_four,
    ),
    ("05_gating", "**Yes in Mamba and DMM.**", lambda: all(map(near_has_larger_gradients, ("mamba", "dmm")))),
    ("05_gating", "In the transformer it is level.", lambda: not near_has_larger_gradients("dt")),
    (
        "06_dense_sequence_mixer",
        "Every policy does what it is asked: success and failure lie far apart at every window, even at 1",
        windows_from_three_on_reach_the_best,
    ),
    (
        "08_training",
        "every one of these policies beats the behaviour that made its data, with every seed. Asked for failure, every "
        "one stays far below it.",
        asked_and_obeyed,
    ),
    ("08_training", "with five seeds the two cannot be told apart.", pointmaze_intervals_overlap),
    (
        "08_training",
        "The seeds of one model lie ten and more points apart, further than the means of the models",
        seeds_lie_further_apart_than_models,
    ),
    (
        "08_training",
        "The first lies among DMM's seeds above, the second a point above the best of stock Mamba's, so neither "
        "explains anything away.",
        more_training_or_fewer_layers_explain_nothing,
    ),
    ("08_training", "the score jumps by tens of points between checkpoints", hopper_checkpoints_jump),
    ("09_paper_versus_code", "Staggered states keep the window's score", staggered_states_keep_the_score),
    (
        "09_paper_versus_code",
        "Never resetting helps one policy and hurts another",
        never_resetting_goes_both_ways,
    ),
    ("15_constant_time_acting", "every seed loses a little.", every_seed_loses_a_little),
    (
        "15_constant_time_acting",
        "seeds of one task disagree about the sign, with either context.",
        seeds_of_a_task_disagree_with_either_context,
    ),
    (
        "15_constant_time_acting",
        "two or four of them cost far less than two or four times one.",
        staggered_states_are_cheap,
    ),
    ("10_baselines", "of three, one costs a policy half of its arrivals", a_leak_costs_half_of_the_arrivals),
    (
        "10_baselines",
        "two seeds scatter more than the three differ",
        relabelled_seeds_scatter_more_than_their_means,
    ),
    (
        "17_at_scale",
        "authors' sizes differ from each other by more than a hundredfold.",
        published_sizes_differ_a_hundredfold,
    ),
]


@pytest.mark.parametrize(
    ("chapter", "sentence", "holds"), CLAIMS + FIGURES, ids=[sentence[:50] for _, sentence, _ in CLAIMS + FIGURES]
)
def test_the_page_says_what_its_file_holds(chapter: str, sentence: str, holds: Callable[[], bool]) -> None:
    assert sentence in pages()[f"notebooks/{chapter}.ipynb"], "the page has other words now: look the claim up again"
    assert holds(), "the file no longer bears this sentence out"


def test_asked_for_success_the_three_models_overlap() -> None:
    """Verdict F of chapter 5."""
    sentence = "**Not seen.** The three models' scores cannot be told apart, in either task."
    assert sentence in pages()["notebooks/05_gating.ipynb"]
    scores = load_result("gating")["scores"]
    for task in TASKS:
        first = next(score["target"] for score in scores if score["name"].startswith(task))
        ends = [s["ci95"] for s in scores if s["name"].startswith(task) and s["target"] == first]
        assert len(ends) == 3 and max(low for low, _ in ends) < min(high for _, high in ends)
