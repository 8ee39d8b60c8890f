"""Figures in which a policy acts: what they say of themselves, and what they refuse."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest

from dmm.errors import InputError
from dmm.experiments import kept_run
from dmm.training import Run
from dmm.widgets import Slider, start_settings
from dmm.widgets.acting import (
    ask_for_a_return,
    beside_recordings,
    best_and_all_returns,
    named_cuts,
    take_something_away,
    ways_of_acting,
)
from dmm.widgets.live import Count, Lane, Layout, LivePanel, LivePolicy, Of, Scene, Shown
from dmm.widgets.parts import asset, notebook_module, site_script, worker_script

MAZE, HOPPER = "gating/pointmaze-dmm-seed0", "gating/hopper-dmm-seed0"


@cache
def run(name: str) -> Run:
    return kept_run(name)


def figure(**changes: Any) -> LivePolicy:
    """A figure without a picture worth looking at, some of its parts changed."""
    given: dict[str, Any] = {
        "name": "a-figure",
        "title": "A <title>",
        "alt": 'Says "what" & how',
        "still": b"png",
        "policies": {MAZE: run(MAZE)},
        "scenes": {"maze": Scene([Lane("DMM", MAZE, asked=Of("asked"))], (0, 1))},
        "controls": [Slider("asked", "Return", [0.0, 1.0])],
    }
    return LivePolicy(**{**given, **changes})


def test_its_html_has_the_picture_and_a_specification_that_json_reads() -> None:
    made = figure().html()
    payload = re.search(r'<script type="application/json">(.*?)</script>', made, re.DOTALL)
    assert payload is not None and json.loads(payload.group(1)) == figure().spec
    assert 'alt="Says &quot;what&quot; &amp; how"' in made and "A &lt;title&gt;" in made
    assert 'class="dmm-widget" data-widget' not in made, "an address would find two kinds of figures under one name"


def test_a_state_is_one_of_its_settings() -> None:
    made = figure()
    assert made.state == start_settings(made.spec) == {"asked": 0.0}
    made.state = {"asked": 1}
    assert made.state == {"asked": 1.0}
    with pytest.raises(InputError, match="allowed are"):
        made.state = {"asked": 0.5}


LANE = Lane("DMM", MAZE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"title": " "}, "title"),
        ({"policies": {}}, "policy"),
        ({"policies": {MAZE: None, "mujoco": None}}, "mujoco"),
        ({"scenes": {}}, "scene"),
        ({"scenes": {"a": Scene([LANE], (0, 1)), "b": Scene([LANE], (0, 1))}}, "scene"),
        ({"scenes": {"a": Scene([Lane("DMM", MAZE, asked=Of("nobody"))], (0, 1))}}, "nobody"),
        ({"scenes": {"a": Scene([Lane("DMM", MAZE, cut=Of("asked", {"x": None}))], (0, 1))}}, "options"),
        ({"controls": [Slider("asked", "Return", [0.0, 1.0])] * 2}, "differ"),
        ({"layout": Layout(count=Count())}, "arms"),
        ({"layout": Layout(speeds={"1/2": 0.5})}, "speed"),
        ({"layout": Layout(when={"asked": Shown("world", "maze")})}, "world"),
        ({"layout": Layout(presets={"A": {"nobody": 1.0}})}, "nobody"),
    ],
)
def test_what_means_nothing_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        figure(**changes)


def test_parts_refuse_what_they_do_not_know() -> None:
    with pytest.raises(InputError, match="window, recurrent, staggered"):
        Lane("DMM", MAZE, way="cached").spec()
    with pytest.raises(InputError, match="returns"):
        Scene([LANE], (1, 1)).spec()
    with pytest.raises(InputError, match="seen, episodes"):
        LivePanel("pie", "A pie").spec([LANE])  # type: ignore[arg-type]


def test_a_kernel_has_the_files_that_the_site_has() -> None:
    script = figure().file(MAZE)
    assert script.startswith("(globalThis.dmmFiles ??= {})[") and '"dmm-policy"' in script
    with pytest.raises(InputError, match="allowed are mujoco"):
        figure().file("another")
    answers: list[Any] = []
    made = figure()
    made.send = lambda content, buffers=None: answers.append((content, buffers))  # type: ignore[method-assign]
    made._send_file(made, {"load": MAZE}, [])
    made._send_file(made, {"load": "another"}, [])
    made._send_file(made, None, [])
    assert answers[0] == ({"name": MAZE}, [script.encode()])
    assert [set(content) for content, _ in answers[1:]] == [{"name", "error"}] * 2


def test_the_scripts_have_all_their_parts() -> None:
    worker = json.dumps(worker_script())
    for script in (notebook_module(), site_script()):
        assert script.count(worker) == 1 and "function renderPolicy" in script
    assert notebook_module().count("export default") == 1 and "export default" not in site_script()
    names = re.search(r"const \{(.*?)\} = globalThis\.dmmWidgets;", site_script())
    assert names is not None
    for name in names.group(1).rstrip(", ").split(", "):
        assert re.search(rf"\b(function|const|let) {name}\b", asset("widgets.js")), name


def test_a_slider_of_returns_reaches_the_best_of_the_data() -> None:
    for name in (MAZE, HOPPER):
        best, values = best_and_all_returns(run(name))
        assert values[0] == 0 and best in values and values[-1] >= best >= run(name).info["dataset"]["max_return"]
        assert 15 < len(values) < 40


def test_every_cut_is_one_that_the_page_knows() -> None:
    cuts = named_cuts(3)
    assert cuts["nothing"] is None and len(cuts) == 12
    assert {kind for cut in cuts.values() if cut for kind in cut} == {"tokens", "window", "gate"}


def test_the_figures_of_the_book() -> None:
    both = {name: run(name) for name in (MAZE, HOPPER)}
    asked = ask_for_a_return(both)
    assert list(asked.spec["scenes"]) == ["point maze", "Hopper"]
    assert {control["name"] for control in asked.spec["controls"] if control.get("when")} == {
        f"{kind}-{world}" for kind in ("asked", "other") for world in ("point-maze", "hopper")
    }
    assert [lane["way"] for lane in ways_of_acting({MAZE: run(MAZE)}).spec["scenes"]["point maze"]["lanes"]] == [
        "window", "recurrent", "staggered",
    ]  # fmt: skip
    cuts = take_something_away({MAZE: run(MAZE), "gating/pointmaze-mamba-seed0": run("gating/pointmaze-mamba-seed0")})
    assert [arm["label"] for arm in cuts.spec["scenes"]["point maze"]["arms"]][:2] == ["DMM, whole", "DMM, without"]
    for made in (asked, cuts):
        assert len(made.spec["alt"].split()) > 10 and len(made.html()) < 300_000
    with pytest.raises(InputError, match="one run for each world"):
        ask_for_a_return({})


def test_a_recording_begins_where_its_episode_did() -> None:
    made = beside_recordings({MAZE: run(MAZE)}, episodes=3)
    for scene in made.spec["scenes"].values():
        assert set(scene["start"]) == {"qpos", "qvel", "goal"}
        recorded, acting = scene["lanes"]
        assert len(recorded["actions"]) > 5 and len(recorded["actions"][0]) == 2 and "actions" not in acting
