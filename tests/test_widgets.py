from __future__ import annotations

import json
import re
from base64 import b64decode
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmm.errors import InputError
from dmm.scan import selective_scan
from dmm.widgets import (
    Bars,
    Explorer,
    Heatmap,
    Line,
    Lines,
    Mark,
    Paths,
    Plane,
    Readout,
    ScanSource,
    Select,
    Skeleton,
    Slider,
    Strip,
    Table,
    data_names,
    format_value,
    steps,
)
from dmm.widgets.picture import _ROOM, _points, _wrapped

TOKENS = 5
ARRAY = np.arange(2 * 3 * 4, dtype=float).reshape(2, 3, 4) / 7


def explorer(**changes: Any) -> Explorer:
    arguments: dict[str, Any] = {
        "title": "A <test> figure",
        "alt": 'Two lines, "up" & down',
        "controls": [Select("method", "Method", ["zoh", "euler"]), Slider("delta", "Step", [0.1, 0.2, 0.5], start=0.2)],
        "data": {
            "response": Table(ARRAY, by=("method", "delta")),
            "first": Table(ARRAY[..., 0], by=("method", "delta")),
            "verdict": Table(["fine", "</script>"], by=("method",)),
        },
        "panels": [Lines(y={"response": "response"}, marks=[Mark(x="delta", label="here")])],
        "readouts": [
            Readout("First", "first", ".2f"),
            Readout("Verdict", "verdict", "s"),
            Readout("Step", "delta", ".1g"),
        ],
        "presets": {"Large steps": {"delta": 0.5}},
    }
    return Explorer(**(arguments | changes))


def scan_explorer() -> Explorer:
    sliders = [Slider(f"delta_{t}", f"delta {t}", steps(0, 2, 0.25), start=0.5) for t in range(TOKENS)]
    source = ScanSource(
        u="u", delta=[f"delta_{t}" for t in range(TOKENS)], A=[-1.0, -3.0], B=np.ones((TOKENS, 2)), C=[1.0, 0.5]
    )
    return Explorer(
        "Scan",
        "A heat map",
        controls=[Select("input", "Input", ["impulse", "constant"]), *sliders],
        data={"u": Table([[1, 0, 0, 0, 0], [1, 2, 3, 4, 5]], by=("input",)), "scan": source},
        panels=[Heatmap(data="scan.states", transpose=True), Lines(y={"y": "scan.y"})],
    )


def test_a_setting_picks_its_part_of_the_table() -> None:
    drawn = explorer().at(method="euler", delta=0.5)
    np.testing.assert_allclose(drawn["response"], ARRAY[1, 2], rtol=1e-4)
    assert drawn["delta"] == 0.5
    np.testing.assert_array_equal(explorer().at()["response"], explorer().at(method="zoh", delta=0.2)["response"])


def test_readouts_are_text_in_the_asked_format() -> None:
    assert explorer().readouts_at(method="euler", delta=0.5) == {"First": "2.86", "Verdict": "</script>", "Step": "0.5"}


def test_presets_are_full_settings() -> None:
    assert explorer().spec["presets"] == {"Large steps": {"method": "zoh", "delta": 0.5}}


def test_html_holds_picture_alt_text_and_a_specification_that_cannot_break_out() -> None:
    text = explorer().html()
    assert 'alt="Two lines, &quot;up&quot; &amp; down"' in text
    assert "<figcaption>A &lt;test&gt; figure</figcaption>" in text
    assert 'src="data:image/png;base64,iVBOR' in text
    payload = re.search(r'<script type="application/json">(.*)</script></figure>$', text)
    assert payload is not None and "<" not in payload.group(1)
    assert json.loads(payload.group(1)) == explorer().spec


def test_jupyter_gets_the_live_view_and_static_pages_the_html() -> None:
    content, _ = explorer()._repr_mimebundle_() or ({}, {})
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"} <= set(content)
    assert content["text/plain"] == "Explorer('A <test> figure')"


def test_state_can_be_read_and_set_from_python() -> None:
    figure = explorer()
    assert figure.state == {"method": "zoh", "delta": 0.2}
    figure.state = {"method": "euler"}
    assert figure.state == {"method": "euler", "delta": 0.2}
    with pytest.raises(InputError, match="delta"):
        figure.state = {"delta": 0.3}


def test_scales_are_fixed_over_all_settings() -> None:
    low, high = explorer().spec["panels"][0]["y_range"]
    assert low < ARRAY.min() and high > ARRAY.max()
    diverging = explorer(
        panels=[Heatmap(data="square", colors="diverging")], data={"square": Table([[-3.0, 1.0]])}, readouts=[]
    )
    assert diverging.spec["panels"][0]["range"] == [-3.0, 3.0]


def test_gaps_complex_numbers_and_rounding() -> None:
    figure = explorer(
        data={"poles": Table([1 + 2j, -0.123456789]), "gap": Table([1.0, np.nan, np.inf])},
        panels=[Plane(points={"poles": "poles"}), Lines(y={"gap": "gap"})],
        readouts=[],
    )
    assert figure.spec["data"]["gap"]["values"] == [1, None, None]
    np.testing.assert_allclose(figure.at()["poles"], [[1, 2], [-0.12346, 0]])
    assert np.isnan(figure.at()["gap"][1:]).all()
    assert figure.picture().startswith(b"\x89PNG")


def test_every_panel_draws_and_names_its_data() -> None:
    data = {
        "matrix": Table(np.eye(3)),
        "bars": Table([1.0, -2.0]),
        "ends": Table([[0.5, 1.5], [-3.0, -1.0]]),
        "window": Table([0, 2]),
        "some": Table([0.2, 0.9, 1.0]),
        "labels": Table(["a", "b", "c"]),
        "route": Table([[0, 0], [0.5, 0.5], [1, 0.2]]),
        "when": Table(1),
        "x": Table([1.0, 10.0, 100.0]),
    }
    kinds = ["rtg", "state", "action"]
    panels = [
        Heatmap(data="matrix", x_ticks=kinds),
        Bars(data="bars", names=["a", "b"], intervals="ends", width="half"),
        Plane(points={"p": "ends"}, stable="half-plane"),
        Strip(kinds=kinds, labels="labels", strength="some", present="some", highlight="window"),
        Paths(paths={"r": "route"}, walls=[(0, 0, 1, 0.1)], points={"goal": (1, 1)}, time="when"),
        Lines(y={"s": Line("some", style="steps"), "d": Line("some", style="dots", color="rtg")}, x="x", log_x=True),
    ]
    figure = explorer(data=data, panels=panels, readouts=[])
    assert figure.picture().startswith(b"\x89PNG")
    drawn = [set(data_names(panel)) for panel in figure.spec["panels"]]
    assert drawn == [
        {"matrix"},
        {"bars", "ends"},
        {"ends"},
        {"labels", "some", "window"},
        {"route", "when"},
        {"some", "x"},
    ]


def test_bars_may_change_places_and_one_may_stand_out() -> None:
    numbers = {"fair": [3.0, 2.0, np.nan], "other": [9.0, 4.0, 1.0]}
    names, ends = [["a", "b", ""], ["b", "c", "a"]], [[[2.0, 5.0], [np.nan, np.nan], [np.nan, np.nan]]] * 2
    data = {
        "score": Table(list(numbers.values()), ("rule",)),
        "name": Table(names, ("rule",)),
        "ends": Table(ends, ("rule",)),
        "place": Table([1.0, np.nan], ("rule",)),
    }
    figures = [
        explorer(
            controls=[Select("rule", "Rule", list(numbers))],
            data=data,
            panels=[Bars(data="score", names="name", intervals="ends", highlight="place", horizontal=lying)],
            readouts=[],
            presets={},
        )
        for lying in (False, True)
    ]
    for figure in figures:
        (panel,) = figure.spec["panels"]
        assert data_names(panel) == ["score", "name", "ends", "place"] and panel["color"] == "state"
        assert panel["y_range"][0] == 0 and panel["y_range"][1] > 9
        assert figure.at(rule="other")["name"].tolist() == names[1]
        assert np.isnan(figure.at(rule="other")["place"])
    assert figures[0].picture() != figures[1].picture()


def test_bars_write_nothing_that_is_not_asked_for() -> None:
    assert not {"horizontal", "highlight"} & set(Bars(data="bars", names=["a", "b"]).spec())


def test_bars_with_names_from_data_have_one_colour() -> None:
    with pytest.raises(InputError, match="one is allowed where names are data"):
        Bars(data="bars", names="names", color=["state", "rtg"]).spec()


@given(st.lists(st.sampled_from(steps(0, 2, 0.25)), min_size=TOKENS, max_size=TOKENS))
def test_the_live_scan_is_the_package_s_scan(delta: list[float]) -> None:
    drawn = SCAN.at(input="constant", **{f"delta_{t}": value for t, value in enumerate(delta)})
    u, step = torch.tensor([1.0, 2, 3, 4, 5]).double(), torch.tensor(delta).double()
    B, C = torch.ones(1, TOKENS, 2).double(), torch.tensor([1.0, 0.5]).double().expand(1, TOKENS, 2)
    A = torch.tensor([[-1.0, -3.0]]).double()
    y, last = selective_scan(u.view(1, -1, 1), step.view(1, -1, 1), A, B, C, return_last_state=True)
    np.testing.assert_allclose(drawn["scan.y"], y.flatten().numpy(), atol=1e-6)
    np.testing.assert_allclose(drawn["scan.states"][-1], last.flatten().numpy(), atol=1e-6)
    np.testing.assert_allclose(drawn["scan.contributions"].sum(0), drawn["scan.states"][-1], atol=1e-12)
    np.testing.assert_allclose(drawn["scan.attribution"].sum(), drawn["scan.y"][-1], atol=1e-12)
    written, kept, held = np.array(delta), drawn["scan.kept"], drawn["scan.held"]
    assert not held[written == 0].any(), "a token that was never written is not drawn"
    np.testing.assert_allclose(held[written >= 1], kept[written >= 1])


SCAN = scan_explorer()


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (1.005, ".1f", "1.0"),
        (1e-7, ".2g", "1e-07"),
        (0.25, ".0%", "25%"),
        (2.6, "d", "3"),
        (float("nan"), ".1f", "–"),
        (-0.001, ".1f", "0.0"),
    ],
)
def test_formats(value: float, form: str, text: str) -> None:
    assert format_value(value, form) == text


def test_steps_have_no_rounding_dust() -> None:
    assert steps(0, 0.3, 0.1) == [0.0, 0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"alt": " "}, "alt"),
        ({"data": {"response": Table(ARRAY, by=("delta",))}}, "response"),
        ({"data": {"response": Table(ARRAY, by=("size",))}}, "size"),
        ({"panels": [Lines(y={"x": "nothing"})]}, "nothing"),
        ({"readouts": [Readout("All", "response")]}, "response"),
        ({"readouts": [Readout("First", "first", "{}")]}, "format"),
        ({"presets": {"p": {"delta": 7.0}}}, "delta"),
        ({"presets": {"p": {"gamma": 7.0}}}, "gamma"),
        ({"controls": [Slider("delta", "Step", [0.1])]}, "delta"),
        ({"controls": [Slider("first", "Step", [0.1, 0.2])], "data": {"first": Table(1.0)}}, "first"),
        ({"data": {"response": Table(np.random.default_rng(0).random(60_000))}, "readouts": []}, "300,000"),
        ({"data": {"response": Table(np.eye(2))}, "panels": [Heatmap(data="response", y_ticks=["a"])]}, "y_ticks"),
        ({"data": {"response": Table(np.eye(2))}, "panels": [Heatmap(data="response", x_kinds=["rtg"])]}, "x_kinds"),
        ({"data": {"response": Table(np.eye(2))}, "panels": [Heatmap(data="response", x_kinds=["rtg", "b"])]}, "'b'"),
        ({"data": {"response": Table([1.0])}, "panels": [Heatmap(data="response")]}, "rows, columns"),
        ({"panels": [Lines(y={"x": Line("response", low="response")})]}, "both low and high"),
        (
            {
                "data": {"n": Table([1.0, 2.0]), "t": Table(["a"])},
                "readouts": [],
                "panels": [Bars(data="n", names="t")],
            },
            "'t' has shape",
        ),
        (
            {
                "data": {"n": Table([1.0, 2.0])},
                "readouts": [],
                "panels": [Bars(data="n", names=["a", "b"], highlight="n")],
            },
            "one number",
        ),
        ({"panels": [Lines(y={"x": Line("response", low="response", high="nothing")})]}, "nothing"),
    ],
)
def test_bad_figures_are_refused_in_one_line(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        explorer(**change)
    assert "\n" not in str(caught.value)


SQUARE = Table([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("data", "panel", "named"),
    [
        ({}, Paths(), "paths and figures"),
        ({}, Paths(figures={"body": Skeleton("nothing")}), "nothing"),
        ({"body": SQUARE}, Paths(figures={"body": Skeleton("body", "nothing")}), "nothing"),
        ({"body": Table([1.0, 2.0])}, Paths(figures={"body": Skeleton("body")}), r"\(p, 2\)"),
        ({"body": SQUARE}, Paths(figures={"body": Skeleton("body", [(0, 3)])}), "point 3; allowed: 0 to 2"),
        ({"body": SQUARE}, Paths(figures={"body": Skeleton("body", [(0, 0.5)])}), "point 0.5"),  # type: ignore[list-item]
        ({"body": SQUARE}, Paths(figures={"body": Skeleton("body", color="pink")}), "pink"),
        ({"body": SQUARE, "bones": Table([0, 1])}, Paths(figures={"body": Skeleton("body", "bones")}), r"\(s, 2\)"),
        ({"route": Table([1.0, 2.0])}, Paths(paths={"route": "route"}), r"\(t, 2\)"),
        ({"route": SQUARE, "walls": SQUARE}, Paths(paths={"r": "route"}, walls="walls"), r"\(m, 4\)"),
        ({"route": SQUARE}, Paths(paths={"r": "route"}, points={"goal": "route"}), "'route' has shape"),
        ({"route": SQUARE, "x": Table([1.0, 1.0])}, Paths(paths={"r": "route"}, x_range="x"), "low < high"),
        ({"line": Table([1.0, 2.0]), "y": Table([0.0, np.nan])}, Lines(y={"line": "line"}, y_range="y"), "low < high"),
    ],
)
def test_bad_paths_and_limits_are_refused(data: dict[str, Table], panel: Any, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        explorer(data=data, panels=[panel], readouts=[])
    assert "\n" not in str(caught.value)


def test_every_option_of_a_drop_down_is_checked() -> None:
    bones = Table([[[0, 1]], [[0, 7]]], by="method")
    panel = Paths(figures={"body": Skeleton("body", "bones")})
    with pytest.raises(InputError, match="point 7"):
        explorer(data={"body": SQUARE, "bones": bones}, panels=[panel], readouts=[])


def _scene(**changes: Any) -> Explorer:
    """Two sets of different build and size, three frames each; the second one's figure has no third point."""
    points = np.array([[0.0, 0.0], [0.0, 1.0], [0.5, 1.5]]) + 0.1 * np.arange(3)[:, None, None]
    both = np.stack([points, 10 * points])
    both[1, :, 2] = np.nan
    data = {
        "body": Table(both, by=("method", "delta"), bits=16),
        "bones": Table([[[0, 1], [1, 2]], [[0, 1], [np.nan, np.nan]]], by="method"),
        "walls": Table([[[0, -1, 2, 1], [np.nan] * 4], [[0, -9, 20, 9], [30, 0, 1, 20]]], by="method"),
        "route": Table(both[:, :, 0], by="method"),
        "heights": Table(both[:, :, 0, 1], by="method"),
        "goal": Table([[1.5, 0.5], [np.nan, np.nan]], by="method"),
        "x": Table([[-1.0, 2.0], [-10.0, 35.0]], by="method"),
        "y": Table([[-1.0, 2.0], [-10.0, 20.0]], by="method"),
        "frame": Table([0, 1, 2], by="delta"),
    }
    panel = Paths(
        paths={"trail": "route"},
        figures={"body": Skeleton("body", "bones")},
        walls="walls",
        points={"goal": "goal", "door": (1.0, 1.0)},
        time="frame",
        x_range="x",
        y_range="y",
    )
    lines = Lines(y={"height": "heights"}, y_range="y")
    return explorer(data=data | changes, panels=[panel, lines], readouts=[])


def test_paths_take_figures_walls_points_and_limits_from_data() -> None:
    written = _scene().spec["panels"]
    assert set(data_names(written[0])) == {"body", "bones", "walls", "route", "goal", "x", "y", "frame"}
    assert set(data_names(written[1])) == {"heights", "y"}
    assert written[0]["figures"] == [{"name": "body", "data": "body", "segments": "bones", "color": "action"}]
    assert written[0]["paths"][0]["color"] != written[0]["figures"][0]["color"]


def test_the_still_picture_shows_figure_walls_and_points() -> None:
    gaps = {"body": (3, 2), "walls": (2, 4), "goal": (2,), "route": (3, 2)}
    whole = _scene().picture()
    for name, shape in gaps.items():
        assert _scene(**{name: Table(np.full(shape, np.nan))}).picture() != whole, name


def test_a_play_button_has_a_pace() -> None:
    def pace(play: Any) -> Any:
        return Slider("step", "Step", range(60), play=play).spec()["play"]

    assert [pace(play) for play in (False, True, 20, 7.5)] == [None, 12.5, 20.0, 7.5]
    assert Slider("step", "Step", [1, 2], play=True).spec()["play"] == 0.5
    for play in (0, -1, 61, float("nan")):
        with pytest.raises(InputError, match="play"):
            pace(play)


def test_sixteen_bits_are_two_bytes_per_number() -> None:
    numbers = np.random.default_rng(0).uniform(-2, 40, size=(2, 3, 50, 2))
    numbers[0, 0, 0] = np.nan, 0.0
    figure = explorer(
        data={"route": Table(numbers, by=("method", "delta"), bits=16)},
        panels=[Paths(paths={"r": "route"})],
        readouts=[],
    )
    assert len(json.dumps(figure.spec["data"]["route"])) < numbers.size * 8 / 3 + 200
    np.testing.assert_allclose(figure.at(method="zoh", delta=0.1)["route"], numbers[0, 0], atol=0.51 * 42 / 65_533)
    assert figure.at(method="zoh", delta=0.1)["route"][0, 1] == 0.0


def test_long_readouts_break_into_lines_as_wide_as_the_picture() -> None:
    parts = [f"reading {'x' * (i % 17 + 1)} number {i}" for i in range(30)]
    lines = _wrapped(parts)
    assert " ".join(lines) == "; ".join(parts)
    assert max(_points(line) for line in [*lines, *_wrapped(["word " * 100])]) <= _ROOM
    assert all(_points(f"{line} {after.split(';')[0]};") > _ROOM for line, after in pairwise(lines))
    assert _wrapped([]) == [] and _wrapped(["costs $5 and $6"]) == ["costs $5 and $6"]


@pytest.mark.parametrize(("array", "bits", "named"), [([1.0], 4, "bits is 4"), (["a"], 8, "texts"), (["a"], 16, "=16")])
def test_bad_packing_is_refused(array: list[Any], bits: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Table(array, bits=bits)


def test_steps_refuses_an_empty_range() -> None:
    with pytest.raises(InputError, match="high"):
        steps(1, 0, 0.1)


def test_a_packed_table_is_one_byte_per_number_and_python_says_the_same() -> None:
    numbers = np.random.default_rng(0).normal(size=(2, 3, 24, 700))
    numbers[1, 2, 0, :3] = [np.nan, np.inf, 0.0]
    figure = explorer(
        data={"map": Table(numbers, by=("method", "delta"), bits=8)},
        panels=[Heatmap(data="map")],
        readouts=[],
    )
    source = figure.spec["data"]["map"]
    assert len(json.dumps(source)) < numbers.size * 4 / 3 + 200
    step = (np.nanmax(numbers[np.isfinite(numbers)]) - numbers.min(where=np.isfinite(numbers), initial=0)) / 253
    for i, method in enumerate(["zoh", "euler"]):
        drawn = figure.at(method=method, delta=0.5)["map"]
        finite = np.isfinite(numbers[i, 2])
        np.testing.assert_array_equal(np.isfinite(drawn), finite)
        np.testing.assert_allclose(drawn[finite], numbers[i, 2][finite], atol=0.501 * step)
    assert figure.at(method="euler", delta=0.5)["map"][0, 2] == 0.0, "zero stays zero"
    codes = np.frombuffer(b64decode(source["bytes"]), dtype=np.uint8).reshape(source["shape"])
    np.testing.assert_array_equal(
        figure.at(method="zoh", delta=0.1)["map"], source["low"] + codes[0, 0] * source["step"]
    )


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_packing_keeps_ends_order_and_zero(numbers: list[float]) -> None:
    drawn = explorer(data={"map": Table([numbers], bits=8)}, panels=[Heatmap(data="map")], readouts=[]).at()["map"][0]
    step = (max(numbers) - min(numbers)) / 253
    np.testing.assert_allclose(drawn, numbers, atol=0.501 * step + 1e-12)
    order = np.argsort(numbers, kind="stable")
    assert (np.diff(drawn[order]) >= 0).all()
    if min(numbers) <= 0 <= max(numbers):
        assert (drawn[np.array(numbers) == 0] == 0).all()


@pytest.mark.parametrize("numbers", [[[np.nan, np.nan]], [[3.0, 3.0]], [[0.0, 0.0]]])
def test_a_packed_table_may_hold_one_number_or_none(numbers: list[list[float]]) -> None:
    figure = explorer(data={"map": Table(numbers, bits=8)}, panels=[Heatmap(data="map")], readouts=[])
    np.testing.assert_array_equal(figure.at()["map"], numbers)
    assert figure.picture().startswith(b"\x89PNG")


def test_a_line_carries_its_interval() -> None:
    data = {"mid": Table([0.2, 0.4, np.nan]), "low": Table([-1.0, 0.3, 0.1]), "high": Table([0.5, 3.0, 0.6])}
    styles = ("line", "dashed", "dots", "steps")
    lines = {style: Line("mid", style=style, low="low", high="high") for style in styles}  # type: ignore[arg-type]
    figure = explorer(data=data, panels=[Lines(y=lines)], readouts=[])
    assert set(data_names(figure.spec["panels"][0])) == {"mid", "low", "high"}
    low, high = figure.spec["panels"][0]["y_range"]
    assert low < -1.0 and high > 3.0
    assert figure.picture().startswith(b"\x89PNG")


def test_a_heat_map_shows_the_modality_of_its_rows_and_columns() -> None:
    kinds = ["rtg", "state", "action"]
    panel = Heatmap(data="map", x_kinds=kinds, y_kinds=kinds[:2], x_ticks=kinds, transpose=True)
    with_bands = explorer(data={"map": Table(np.eye(3)[:, :2])}, panels=[panel], readouts=[])
    without = explorer(data={"map": Table(np.eye(3)[:, :2])}, panels=[Heatmap(data="map", transpose=True)], readouts=[])
    assert with_bands.spec["panels"][0]["y_kinds"] == ["rtg", "state"]
    assert with_bands.picture() != without.picture()
