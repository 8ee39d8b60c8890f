"""The book's figures in which a policy acts, each made from trained runs; `dmm.widgets.live` says what they consist of.

A figure's runs are given by the names under which the site has their weights: those of the runs that are kept with the
package. Chapters make them as

    runs = {name: kept_run(name) for name in ("gating/pointmaze-dmm-seed0", "gating/hopper-dmm-seed0")}
    ask_for_a_return(runs)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmm.data.preview import preview
from dmm.errors import InputError
from dmm.export import describe_policy
from dmm.training import Run
from dmm.widgets.controls import Select, Slider, steps
from dmm.widgets.courses import Course, draw_courses, play_course
from dmm.widgets.live import Count, Lane, Layout, LivePanel, LivePolicy, Of, Scene, Shown

SPEEDS = {"1/10": 0.1, "1/4": 0.25, "1/2": 0.5, "real time": 1.0}
"""Seconds of the world in one second of the reader's."""
STARTS = 50
"""Starts that a reader can choose; each is a seed of the page's own generator."""
_NAMES = {"hopper": "Hopper", "walker2d": "Walker2d", "pointmaze": "point maze", "tmaze": "T-maze"}
_MODELS = {"dmm": "DMM", "mamba": "stock Mamba", "dt": "transformer"}
_MODEL_COLORS = {"dmm": "green", "mamba": "purple", "dt": "grey"}

Runs = Mapping[str, Run]


def ask_for_a_return(runs: Runs, name: str = "ask-for-a-return") -> LivePolicy:
    """A policy acts while the reader changes the return that is asked of it; twenty episodes of each of two returns.

    Args:
        runs: one run for each world that can be chosen, by its name.
        name: of the figure in its page.
    """
    worlds = _by_world(runs)
    controls: list[Any] = [Select("world", "World", list(worlds))] if len(worlds) > 1 else []
    scenes, stills = {}, []
    when: dict[str, Shown] = {}
    presets: dict[str, dict[str, float | str]] = {}
    for world, (policy, run) in worlds.items():
        key = world.replace(" ", "-").lower()
        best, values = best_and_all_returns(run)
        asked, other = f"asked-{key}", f"other-{key}"
        controls += [Slider(asked, "Return asked for", values, start=best), Slider(other, "Compared with", values)]
        if len(worlds) > 1:
            when |= {asked: Shown("world", world), other: Shown("world", world)}
        scenes[world] = Scene(
            lanes=[Lane(_model(run), policy, asked=Of(asked))],
            arms=[Lane("asked", policy, asked=Of(asked)), Lane("compared", policy, "rtg", asked=Of(other))],
            returns=(0.0, best),
        )
        world_setting: dict[str, float | str] = {"world": world} if len(worlds) > 1 else {}
        presets |= {f"{_NAMES_SHORT[key]}: the best": world_setting | {asked: best}}
        presets |= {f"{_NAMES_SHORT[key]}: nothing": world_setting | {asked: 0.0, other: best}}
        stills.append(_two_returns(run, best))
    return LivePolicy(
        name,
        "Ask for a return",
        alt="; ".join(_told(group) for group in stills) + ".",
        still=draw_courses(stills),
        policies=runs,
        scenes=scenes,
        scene="world" if len(worlds) > 1 else None,
        controls=[*controls, *_pace()],
        layout=Layout(
            panels=[
                LivePanel("seen", "The last steps as the policy sees them", height=300),
                LivePanel("episodes", "Returns of whole episodes, with the mean and its 95 % interval", height=170),
            ],
            when=when,
            speeds=SPEEDS,
            count=Count(),
            presets=presets,
        ),
    )


def _two_returns(run: Run, best: float) -> list[Course]:
    """From one start, asked for the best return and for none: of the first start where the former earns more."""
    for seed in range(10):
        pair = [
            play_course(run, f"asked for {asked:g}", asked=asked, color=color, seed=seed, steps=400)
            for asked, color in ((best, "state"), (0.0, "rtg"))
        ]
        if pair[0].earned > 1.1 * pair[1].earned:
            break
    return pair


def ways_of_acting(runs: Runs, name: str = "ways-of-acting") -> LivePolicy:
    """One policy from one start in three ways: over a window, as a recurrence, with staggered states.

    Args:
        runs: one run for each world that can be chosen, by its name.
        name: of the figure in its page.
    """
    worlds = _by_world(runs)
    ways = {"window": "state", "recurrent": "green", "staggered": "purple"}
    scenes, stills = {}, []
    for world, (policy, run) in worlds.items():
        best, _ = best_and_all_returns(run)
        lanes = [Lane(way, policy, color, way=way, asked=best, label=way) for way, color in ways.items()]
        scenes[world] = Scene(lanes=lanes, returns=(0.0, best))
        stills.append([play_course(run, way, asked=best, color=color, way=way) for way, color in ways.items()])
    several = len(worlds) > 1
    return LivePolicy(
        name,
        "Three ways of acting from one start",
        alt="; ".join(_told(group) for group in stills) + ".",
        still=draw_courses(stills),
        policies=runs,
        scenes=scenes,
        scene="world" if several else None,
        controls=[*([Select("world", "World", list(worlds))] if several else []), *_pace()],
        layout=Layout(
            panels=[
                LivePanel("distances", "Distance from the course of the window", "half"),
                LivePanel("times", "Time for one action in this browser", "half"),
            ],
            speeds=SPEEDS,
        ),
    )


def take_something_away(runs: Runs, name: str = "take-something-away") -> LivePolicy:
    """Two models from one start, both without the same part; twenty episodes of each, whole and cut.

    Args:
        runs: two runs, of different models, for each world that can be chosen, by their names.
        name: of the figure in its page.
    """
    worlds: dict[str, list[tuple[str, Run]]] = {}
    for policy, run in runs.items():
        worlds.setdefault(_world(run), []).append((policy, run))
    layers = min(int(run.info["config"]["layers"]) for run in runs.values())
    cuts = named_cuts(layers)
    scenes, stills = {}, []
    for world, pairs in worlds.items():
        best, _ = best_and_all_returns(pairs[0][1])
        cut = Of("cut", cuts)
        lanes, arms = [], []
        for policy, run in pairs:
            model, color = _model(run), _MODEL_COLORS[run.info["model"]]
            lanes.append(Lane(model, policy, color, asked=best, cut=cut))
            arms += [
                Lane(model, policy, color, asked=best, label=f"{model}, whole"),
                Lane(model, policy, color, asked=best, cut=cut, label=f"{model}, without"),
            ]
        scenes[world] = Scene(lanes=lanes, arms=arms, returns=(0.0, best))
        stills.append([play_course(run, _model(run), asked=best, color=_MODEL_COLORS[run.info["model"]])
                       for _, run in pairs])  # fmt: skip
    several = len(worlds) > 1
    return LivePolicy(
        name,
        "Take something away while it acts",
        alt="Nothing is taken away yet. " + "; ".join(_told(group) for group in stills) + ".",
        still=draw_courses(stills),
        policies=runs,
        scenes=scenes,
        scene="world" if several else None,
        controls=[
            *([Select("world", "World", list(worlds))] if several else []),
            Select("cut", "Take away", list(cuts)),
            *_pace(),
        ],
        layout=Layout(
            panels=[
                LivePanel("episodes", "Returns of whole episodes, with the mean and its 95 % interval", height=300)
            ],
            speeds=SPEEDS,
            count=Count(),
            presets={f"Without {cut}": {"cut": cut} for cut in list(cuts)[1:6]},
        ),
    )


def remember_a_cue(runs: Runs, name: str = "remember-a-cue") -> LivePolicy:
    """Policies of several contexts in one T-maze, as windows; the longest also recurrent, with and without padding.

    Args:
        runs: of one T-maze, by their names.
        name: of the figure in its page.
    """
    by_context = sorted(runs.items(), key=lambda item: -item[1].policy.context)
    best = max(best_and_all_returns(run)[0] for run in runs.values())
    chosen = [(f"K = {run.policy.context}", policy, run, "window", True) for policy, run in by_context]
    longest, policy, run, *_ = chosen[0]
    for words, padding in (("never reset, no padding", False), ("never reset", True)):
        chosen.insert(1, (f"{longest}, {words}", policy, run, "recurrent", padding))
    colors = [color for color, _ in zip(("green", "purple", "state", "action", "grey"), chosen, strict=False)]
    lanes, still = [], []
    for (label, policy, run, way, padding), color in zip(chosen, colors, strict=True):
        lanes.append(Lane(label, policy, color, way=way, padding=padding, asked=best, label=label))
        still.append(play_course(run, label, asked=best, color=color, way=way, padding=padding))
    return LivePolicy(
        name,
        "A cue at the first step, and a turn at the last",
        alt=_told(still) + ".",
        still=draw_courses([still]),
        policies=runs,
        scenes={"T-maze": Scene(lanes=lanes, arms=lanes, returns=(0.0, best), physics=False)},
        controls=_pace(),
        layout=Layout(
            panels=[
                LivePanel("seen", f"What the policy with {chosen[0][0]} sees", height=230),
                LivePanel("episodes", "Returns of whole episodes, with the mean and its 95 % interval", height=220),
            ],
            speeds=SPEEDS,
            count=Count(),
        ),
    )


def beside_recordings(runs: Runs, name: str = "beside-recordings", episodes: int = 8) -> LivePolicy:
    """Recorded episodes of each run's data set, played again, each beside the policy from the same start.

    Args:
        runs: by their names.
        name: of the figure in its page.
        episodes: the worst, the middle and the best of so many, the first that the data set has.
    """
    scenes, stills = {}, []
    for policy, run in runs.items():
        best, _ = best_and_all_returns(run)
        data = preview(run.info["dataset"]["id"], episodes)
        order = np.argsort(data.returns(), kind="stable")
        for word, number in zip(("best", "middle", "worst"), order[[-1, len(order) // 2, 0]], strict=True):
            first = int(data.starts[number])
            own = slice(first, first + int(data.lengths[number]))
            actions = [[float(f"{value:.9g}") for value in action] for action in data.actions[own]]
            recorded = Lane(f"recorded, {word}", policy, "grey", actions=actions)
            acting = Lane(_model(run), policy, _MODEL_COLORS[run.info["model"]], asked=best)
            start = _start(run, data.observations[first])
            scenes[f"{_world(run)}, {word}"] = Scene(lanes=[recorded, acting], returns=(0.0, best), start=start)
        stills.append([play_course(run, _model(run), asked=best, color=_MODEL_COLORS[run.info["model"]])])
    return LivePolicy(
        name,
        "Recorded episodes, and the policy from the same start",
        alt="; ".join(_told(group) for group in stills) + ".",
        still=draw_courses(stills),
        policies=runs,
        scenes=scenes,
        scene="recording",
        controls=[Select("recording", "Recorded episode", list(scenes)), _speed()],
        layout=Layout(panels=[LivePanel("distances", "Distance from the recorded course", height=180)], speeds=SPEEDS),
    )


def _start(run: Run, observation: NDArray[np.float32]) -> dict[str, Any]:
    """The state of the page's world that an episode's first observation `(s,)` shows."""
    kind = describe_policy(run)["environment"]["world"]["kind"]
    seen = [float(value) for value in observation]
    if kind == "point_maze":
        return {"qpos": seen[:2], "qvel": seen[2:4], "goal": seen[4:]}
    half = (len(seen) - 1) // 2  # the place along the ground is not observed, and nothing depends on it
    return {"qpos": [0.0, *seen[:half]], "qvel": seen[half:]}


_NAMES_SHORT = {"point-maze": "Maze", "hopper": "Hopper", "walker2d": "Walker2d", "t-maze": "T-maze"}


def _speed() -> Select:
    return Select("speed", "Speed", list(SPEEDS), start="1/2")


def _pace() -> list[Any]:
    return [Slider("start", "Start", steps(1, STARTS, 1), format="d"), _speed()]


def _world(run: Run) -> str:
    """How the book calls the world of a run's data."""
    family = run.info["dataset"]["id"].removeprefix("dmm/").split("/")[0]
    if family not in _NAMES:
        raise InputError(f"runs: data set {run.info['dataset']['id']!r}; allowed are those of {', '.join(_NAMES)}")
    return _NAMES[family]


def _model(run: Run) -> str:
    return _MODELS.get(run.info["model"], str(run.info["model"]))


def _by_world(runs: Runs) -> dict[str, tuple[str, Run]]:
    found = {_world(run): (policy, run) for policy, run in runs.items()}
    if not runs or len(found) != len(runs):
        raise InputError(f"runs: got {', '.join(runs) or 'none'}; allowed is one run for each world")
    return found


def best_and_all_returns(run: Run) -> tuple[float, list[float]]:
    """The best return of the data, rounded upwards to a step of the slider, and its values, to a tenth more."""
    best = float(run.info["dataset"]["max_return"])
    power = 10 ** math.floor(math.log10(best / 25))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= best / 25)
    top = math.ceil(best / step - 1e-9)
    return round(top * step, 9), steps(0.0, math.ceil(1.1 * top) * step, step)


def named_cuts(layers: int) -> dict[str, Any]:
    """What can be taken away from a policy with so many layers, by the names that a reader chooses from."""
    every = list(range(1, layers + 1))
    cuts: dict[str, Any] = {"nothing": None}
    for token, words in {"rtg": "return-to-go tokens", "state": "state tokens", "action": "action tokens"}.items():
        cuts[words] = {"tokens": [token]}
    cuts |= {"all local windows": {"window": every}, "all gates": {"gate": every}}
    for kind, words in {"window": "local window", "gate": "gate"}.items():
        cuts |= {f"{words} of layer {layer}": {kind: [layer]} for layer in every}
    return cuts


def _told(courses: Sequence[Course]) -> str:
    """What a picture of courses shows, in words."""
    first = courses[0]
    kind = "Poses of a hopping robot from the side" if first.view.segments else "A maze from above with paths"
    each = ", ".join(
        f"{course.label} (earned {course.earned:.4g} in {len(course.points) - 1} steps)" for course in courses
    )
    return f"{kind}: {each}"
