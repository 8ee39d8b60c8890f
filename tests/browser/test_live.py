"""Figures in which a policy acts: asleep until they are started, then alive, steered, read out, and stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from dmm.data.preview import preview
from dmm.experiments import kept_run
from dmm.widgets import start_settings
from dmm.widgets.parts import ASSETS, notebook_module
from tests.browser.live_page import HOPPER, MAZE, damaged, figures, write_page

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf8")
WRITTEN = 400  # milliseconds after which a setting stands in the address
FIRST_MOTION = 2.5  # seconds from the click
BLOCKED = 50  # milliseconds for which the main thread may be busy at a time
STEPPED = "e => e.dmm.view.pictures?.[0].steps ?? 0"

Opener = Callable[..., tuple[Page, Locator]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each figure."""
    return {name: write_page(tmp_path_factory.mktemp(name), figure) for name, figure in figures().items()}


@pytest.fixture
def opened(browser: Browser, folders: dict[str, Path]) -> Iterator[Opener]:
    """Opens a figure's page from the disk; in the end, holds against it what it reported as errors and asked for."""
    contexts, errors, asked = [], [], []

    def open_page(name: str = "return", query: str = "", path: Path | None = None, script: str = "", **options: Any):
        context = browser.new_context(**({"viewport": {"width": 900, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        if script:
            page.add_init_script(script)
        page.goto((path or folders[name]).as_uri() + query, wait_until="load")
        return page, page.locator("figure.dmm-policy .dmm-widget")

    open_page.asked = asked  # type: ignore[attr-defined]
    open_page.errors = errors  # type: ignore[attr-defined]
    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert [address for address in asked if not address.startswith(("file:", "data:", "blob:"))] == []


def _start(page: Page, figure: Locator) -> None:
    figure.get_by_role("button", name=re.compile("^Start")).click()
    figure.locator(".dmm-explorer").wait_for()


def _moving(page: Page, figure: Locator, steps: int = 3) -> None:
    handle = figure.element_handle()
    page.wait_for_function(f"e => ({STEPPED})(e) >= {steps}", arg=handle)


def _reading(figure: Locator, label: str) -> str:
    return figure.locator(".dmm-reading", has_text=label).locator("strong").inner_text()


def _slider(figure: Locator, label: str) -> Locator:
    return figure.get_by_label(label, exact=True).locator("visible=true")


def test_it_sleeps_until_it_is_started(opened: Opener) -> None:
    page, figure = opened()
    page.wait_for_timeout(300)
    picture = figure.locator("img")
    assert picture.is_visible() and len((picture.get_attribute("alt") or "").split()) > 8
    loaded = [address for address in opened.asked if "dmm-live" in address or "dmm-files" in address]  # type: ignore[attr-defined]
    assert loaded == [] and len(page.workers) == 0


def test_it_moves_soon_after_the_click(opened: Opener) -> None:
    times = []
    for _ in range(3):
        page, figure = opened()
        begun = page.evaluate("performance.now()")
        _start(page, figure)
        _moving(page, figure, 1)
        times.append((page.evaluate("performance.now()") - begun) / 1000)
        if times[-1] < FIRST_MOTION:
            return
        page.close()
    pytest.fail(f"first motion after {times} s; at most {FIRST_MOTION} allowed")


@pytest.mark.parametrize("name", list(figures()))
def test_every_figure_moves_and_paints(opened: Opener, name: str) -> None:
    page, figure = opened(name)
    _start(page, figure)
    _moving(page, figure)
    scene = figure.locator("canvas.dmm-scene")
    before = scene.evaluate("e => e.toDataURL()")
    _moving(page, figure, 20)
    assert scene.evaluate("e => e.toDataURL()") != before
    assert not figure.locator("img").is_visible()
    for panel in figure.locator(".dmm-panel canvas").all():
        assert len((panel.get_attribute("aria-label") or "").split()) > 3


def test_pause_stops_and_a_step_is_one(opened: Opener) -> None:
    page, figure = opened()
    _start(page, figure)
    _moving(page, figure)
    figure.get_by_role("button", name="Pause").click()
    expect(figure.locator(".dmm-said")).to_contain_text("Paused")
    page.wait_for_timeout(200)
    steps = figure.evaluate(STEPPED)
    page.wait_for_timeout(200)
    assert figure.evaluate(STEPPED) == steps
    figure.get_by_role("button", name="Step").click()
    page.wait_for_function(f"e => ({STEPPED})(e) === {steps + 1}", arg=figure.element_handle())


def test_keys_play_pause_and_step(opened: Opener) -> None:
    page, figure = opened()
    _start(page, figure)
    _moving(page, figure)
    figure.locator("canvas.dmm-scene").focus()
    page.keyboard.press("Space")
    expect(figure.locator(".dmm-play")).to_have_text("Play")
    page.wait_for_timeout(200)
    steps = figure.evaluate(STEPPED)
    page.keyboard.press(".")
    page.wait_for_function(f"e => ({STEPPED})(e) === {steps + 1}", arg=figure.element_handle())
    page.keyboard.press("Space")
    _moving(page, figure, steps + 4)


def test_who_wants_less_motion_makes_the_steps(opened: Opener) -> None:
    page, figure = opened(reduced_motion="reduce")
    _start(page, figure)
    page.wait_for_timeout(400)
    assert figure.evaluate(STEPPED) == 0
    expect(figure.locator(".dmm-play")).to_have_text("Play")
    figure.get_by_role("button", name="10 steps").click()
    page.wait_for_function(f"e => ({STEPPED})(e) === 10", arg=figure.element_handle())


def test_the_same_seed_is_the_same_course(opened: Opener) -> None:
    page, figure = opened(reduced_motion="reduce")
    _start(page, figure)
    courses = []
    for _ in range(2):
        figure.get_by_role("button", name="Restart").click()
        figure.get_by_role("button", name="10 steps").click()
        page.wait_for_function(f"e => ({STEPPED})(e) === 10", arg=figure.element_handle())
        courses.append(figure.evaluate("e => JSON.stringify(e.dmm.view.lanes[0].trail)"))
    assert courses[0] == courses[1] and len(courses[0]) > 100


def test_a_return_can_be_asked_in_mid_episode(opened: Opener) -> None:
    page, figure = opened(reduced_motion="reduce", query="#return?world=Hopper")
    _start(page, figure)
    figure.get_by_role("button", name="10 steps").click()
    page.wait_for_function(f"e => ({STEPPED})(e) === 10", arg=figure.element_handle())
    _slider(figure, "Return asked for").press("Home")
    figure.get_by_role("button", name="10 steps").click()
    page.wait_for_function(f"e => ({STEPPED})(e) === 20", arg=figure.element_handle())
    told = figure.evaluate("e => e.dmm.view.pictures[0].seen.map(each => each.returnToGo)")
    assert told[-1] < 0 and abs(told[-1]) < 100, "what was asked, less what was earned"
    page.wait_for_timeout(300)
    assert float(_reading(figure, "Still asked")) < 0


def test_twenty_episodes_of_two_returns_are_counted_and_grow_stale(opened: Opener) -> None:
    page, figure = opened()
    _start(page, figure)
    figure.get_by_role("button", name="Pause").click()
    figure.locator(".dmm-tally").click()
    expect(figure.locator(".dmm-said")).to_contain_text("of 20", timeout=60_000)
    arms = figure.evaluate("e => e.dmm.known.episodes.arms")
    assert [len(arm["returns"]) for arm in arms] == [20, 20]
    asked, nothing = arms
    assert asked["mean"] > nothing["mean"] and set(asked["returns"]) <= {0, 1}
    assert asked["ends"][0] <= asked["mean"] <= asked["ends"][1]
    _slider(figure, "Return asked for").press("ArrowLeft")
    page.wait_for_timeout(300)
    said = figure.evaluate("e => e.dmm.known.episodes.arms.map(arm => arm.said)")
    assert said == ["before the last change: play again"] * 2


def test_its_settings_stand_in_the_address(opened: Opener) -> None:
    page, figure = opened()
    _start(page, figure)
    _slider(figure, "Return asked for").press("Home")
    page.wait_for_timeout(WRITTEN)
    address = page.evaluate("location.hash")
    assert address == "#return?asked-point-maze=0"
    again, other = opened(query=address)
    _start(again, other)
    settings = other.evaluate("e => e.dmm.settings()")
    assert settings == start_settings(figures()["return"].spec) | {"asked-point-maze": 0}
    assert other.evaluate("e => e.dmm.view.pictures?.[0].asked ?? 0") == 0


def test_another_world_is_loaded_when_it_is_chosen(opened: Opener) -> None:
    page, figure = opened()
    _start(page, figure)
    _moving(page, figure)
    hopper = f"dmm-files/{HOPPER.replace('/', '-')}.js"
    assert not any(hopper in address for address in opened.asked)  # type: ignore[attr-defined]
    figure.get_by_label("World").select_option("Hopper")
    page.wait_for_function("e => e.dmm.view.world?.kind === 'hopper'", arg=figure.element_handle())
    _moving(page, figure)
    assert any(hopper in address for address in opened.asked)  # type: ignore[attr-defined]
    assert figure.get_by_role("button", name="Push").is_visible()


def test_the_ball_follows_the_mouse_and_a_tap(opened: Opener) -> None:
    for options, act in (({}, _drag), ({"has_touch": True, "viewport": {"width": 390, "height": 844}}, _tap)):
        page, figure = opened(**options)
        _start(page, figure)
        _moving(page, figure)
        moved = figure.evaluate("e => e.dmm.view.pictures[0].geometry.ball")
        act(page, figure)
        after = figure.evaluate("e => e.dmm.view.pictures[0].geometry.ball")
        assert max(abs(a - b) for a, b in zip(moved, after, strict=True)) > 0.2
        page.close()


def _middle(figure: Locator) -> tuple[float, float]:
    scene = figure.locator("canvas.dmm-scene")
    scene.scroll_into_view_if_needed()
    box = scene.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def _drag(page: Page, figure: Locator) -> None:
    x, y = _middle(figure)
    page.mouse.move(x, y - 60)
    page.mouse.down()
    page.mouse.move(x + 60, y - 60, steps=4)
    page.wait_for_timeout(600)
    page.mouse.up()


def _tap(page: Page, figure: Locator) -> None:
    x, y = _middle(figure)
    page.touchscreen.tap(x + 60, y - 60)
    page.wait_for_timeout(900)


def test_a_push_moves_the_hopper(opened: Opener) -> None:
    page, figure = opened(query="#return?world=Hopper", reduced_motion="reduce")
    _start(page, figure)
    courses = []
    for pushed in (False, True):
        figure.get_by_role("button", name="Restart").click()
        if pushed:
            figure.get_by_role("button", name="Push").click()
        figure.get_by_role("button", name="10 steps").click()
        page.wait_for_function(f"e => ({STEPPED})(e) === 10", arg=figure.element_handle())
        courses.append(figure.evaluate("e => e.dmm.view.lanes[0].trail.at(-1)[0]"))
    assert courses[1] > courses[0] + 0.005


def test_out_of_sight_it_stops(opened: Opener) -> None:
    page, figure = opened()
    _start(page, figure)
    _moving(page, figure)
    page.evaluate("scrollTo(0, 2900)")
    expect(figure.locator(".dmm-play")).to_have_text("Play")
    page.wait_for_timeout(200)
    steps = figure.evaluate(STEPPED)
    page.wait_for_timeout(300)
    assert figure.evaluate(STEPPED) == steps


def test_three_ways_begin_together_and_part(opened: Opener) -> None:
    page, figure = opened("ways", reduced_motion="reduce")
    _start(page, figure)
    for _ in range(3):
        figure.get_by_role("button", name="10 steps").click()
    page.wait_for_function(f"e => ({STEPPED})(e) >= 30 && e.dmm.known.distances", arg=figure.element_handle())
    page.wait_for_timeout(200)
    known = figure.evaluate("e => e.dmm.known")
    for lane in ("lane 1", "lane 2"):
        assert known["distances"][lane][:2] == [0, 0], "the first action is the same"
        assert 0 < max(known["distances"][lane]) < 1
    window, recurrent, staggered = known["times"]["times"]
    assert recurrent < staggered < window


def test_who_sees_the_cue_turns_right(opened: Opener) -> None:
    page, figure = opened("cue")
    _start(page, figure)
    figure.locator(".dmm-tally").click()
    expect(figure.locator(".dmm-said")).to_contain_text("of 20", timeout=120_000)
    arms = figure.evaluate("e => e.dmm.known.episodes.arms")
    assert arms[0]["mean"] == 1 and arms[-1]["ends"][1] < 1


def test_what_is_taken_away_changes_the_course(opened: Opener) -> None:
    page, figure = opened("cuts", reduced_motion="reduce")
    _start(page, figure)
    ends = {}
    for cut in ("nothing", "state tokens", "all local windows"):
        figure.get_by_label("Take away").select_option(cut)
        figure.get_by_role("button", name="Restart").click()
        figure.get_by_role("button", name="10 steps").click()
        page.wait_for_function(f"e => ({STEPPED})(e) === 10", arg=figure.element_handle())
        ends[cut] = figure.evaluate("e => JSON.stringify(e.dmm.view.lanes.map(lane => lane.trail.at(-1)))")
    assert len(set(ends.values())) == 3


@pytest.mark.parametrize("recording", ["point maze, best", "Hopper, best"])
def test_a_recording_earns_again_what_it_earned(opened: Opener, recording: str) -> None:
    """The world of the page is that of the data, so that the same actions lead to the same end."""
    page, figure = opened("recordings", query=f"#recordings?recording={recording}", reduced_motion="reduce")
    _start(page, figure)
    lane = figures()["recordings"].spec["scenes"][recording]["lanes"][0]
    figure.evaluate("(e, count) => e.dmm.tell({ step: count })", len(lane["actions"]))
    page.wait_for_function("e => e.dmm.view.lanes[0].ended", arg=figure.element_handle(), timeout=60_000)
    world = recording.split(",")[0]
    run = kept_run({"point maze": MAZE, "Hopper": HOPPER}[world])
    best = preview(run.info["dataset"]["id"], 4).returns().max()
    earned = figure.evaluate("e => e.dmm.view.pictures[0].earned")
    assert abs(earned - best) < 1e-3 * best, (earned, best)


WITHOUT = "delete globalThis.{0}; Object.defineProperty(globalThis, '{0}', {{ value: undefined }});"


@pytest.mark.parametrize("name", ["WebAssembly", "DecompressionStream", "Worker"])
def test_a_browser_that_lacks_something_says_so(opened: Opener, name: str) -> None:
    _, figure = opened(script=WITHOUT.format(name))
    figure.get_by_role("button", name=re.compile("^Start")).click()
    expect(figure.get_by_role("status")).to_contain_text(name if name != "Worker" else "workers")
    assert figure.locator("img").is_visible()


@pytest.mark.parametrize(
    ("how", "words"), [("no export", "not what"), ("another version", "version"), ("NaN", "finite"), (None, "no file")]
)
def test_a_file_of_no_use_is_named_in_one_sentence(opened: Opener, tmp_path: Path, how: str | None, words: str) -> None:
    changed = {MAZE: damaged(MAZE, how) if how else None}
    _, figure = opened(path=write_page(tmp_path, figures()["return"], changed))
    figure.get_by_role("button", name=re.compile("^Start")).click()
    expect(figure.get_by_role("status")).to_contain_text(words)
    said = figure.get_by_role("status").inner_text()
    assert "\n" not in said and len(said) < 200 and figure.locator("img").is_visible()
    if how is None:  # the browser itself reports a script that is not there
        opened.errors.clear()  # type: ignore[attr-defined]


def test_a_site_without_physics_says_so(opened: Opener, tmp_path: Path) -> None:
    changed = {"mujoco": {"missing": "the registry does not answer"}}
    _, figure = opened(path=write_page(tmp_path, figures()["return"], changed))
    figure.get_by_role("button", name=re.compile("^Start")).click()
    expect(figure.get_by_role("status")).to_contain_text("the registry does not answer")
    assert figure.locator("img").is_visible()


def test_without_scripts_the_picture_is_there(opened: Opener) -> None:
    _, figure = opened(java_script_enabled=False)
    box = figure.locator("img").bounding_box()
    assert box is not None and box["width"] > 300 and box["height"] > 100


@pytest.mark.parametrize("width", [900, 390])
def test_no_serious_violation_and_nothing_beyond_the_edge(opened: Opener, width: int) -> None:
    page, figure = opened(viewport={"width": width, "height": 900})
    page.evaluate(AXE)
    found = []
    for started in (False, True):
        if started:
            _start(page, figure)
            _moving(page, figure)
        for theme in ("light", "dark"):
            page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
            result = page.evaluate("axe.run('figure', { resultTypes: ['violations'], preload: false })")["violations"]
            found += [entry["id"] for entry in result if entry["impact"] in ("serious", "critical")]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert found == []


def _tasks(trace: bytes) -> list[float]:
    """Milliseconds of processor time of each task of pages' main threads, so that a busy machine makes none longer."""
    events = json.loads(trace)["traceEvents"]
    names = {(each["pid"], each["tid"]): each["args"]["name"] for each in events if each["name"] == "thread_name"}
    tasks = [each for each in events if "RunTask" in each["name"] and "tdur" in each]
    return [each["tdur"] / 1000 for each in tasks if names.get((each["pid"], each["tid"])) == "CrRendererMain"]


def test_the_page_is_never_blocked_for_long(opened: Opener, browser: Browser) -> None:
    """While it hops and while episodes are counted."""
    page, figure = opened(query="#return?world=Hopper&speed=real%20time")
    _start(page, figure)
    _moving(page, figure)
    browser.start_tracing(page=page, categories=["toplevel", "__metadata"])
    page.wait_for_timeout(1500)
    figure.locator(".dmm-tally").click()
    counted = "e => e.dmm.known.episodes.arms[0].returns.length > 2"
    page.wait_for_function(counted, arg=figure.element_handle(), timeout=60_000)
    tasks = _tasks(browser.stop_tracing())
    assert len(tasks) > 100 and max(tasks) < BLOCKED, sorted(tasks)[-5:]


def test_fifty_restarts_take_no_more_memory(opened: Opener, browser: Browser) -> None:
    """Neither the page's own nor, with its worker and the physics, the process's."""
    page, figure = opened()
    _start(page, figure)
    _moving(page, figure)
    session, whole = page.context.new_cdp_session(page), browser.new_browser_cdp_session()

    def used() -> dict[str, float]:
        session.send("Memory.simulatePressureNotification", {"level": "critical"})
        page.wait_for_timeout(1000)
        for _ in range(2):
            session.send("HeapProfiler.collectGarbage")
        heap: float = session.send("Runtime.getHeapUsage")["usedSize"]
        processes = whole.send("SystemInfo.getProcessInfo")["processInfo"]
        known = [Path(f"/proc/{each['id']}/smaps_rollup") for each in processes if each["type"] == "renderer"]
        anonymous = [re.search(r"Anonymous: +(\d+)", file.read_text()) for file in known if file.exists()]
        return {"heap": heap, "processes": sum(float(found[1]) for found in anonymous if found)}

    def restarts(count: int) -> None:
        for _ in range(count):
            figure.get_by_role("button", name="Restart").click()
            page.wait_for_timeout(30)

    restarts(10)
    before = used()
    restarts(50)
    after = used()
    assert all(after[kind] <= 1.1 * before[kind] for kind in before), (before, after)


SHIM = """async ({ source, spec, state, still }) => {
    const { default: widget } = await import(`data:text/javascript;base64,${source}`);
    const values = { spec, state, still };
    const listeners = [];
    const model = {
        get: key => values[key], set: (key, value) => { values[key] = value; }, save_changes: () => {},
        on: (event, listener) => listeners.push([event, listener]),
        off: (event, listener) => listeners.splice(listeners.findIndex(([, known]) => known === listener), 1),
        send: async ({ load }) => {
            const text = await window.kernelFile(load);
            const message = text.startsWith("error:") ? { name: load, error: text } : { name: load };
            const heard = listeners.filter(([event]) => event === "msg:custom");
            heard.forEach(([, listener]) => listener(message, [new TextEncoder().encode(text)]));
        },
    };
    window.end = widget.render({ model, el: document.querySelector('#cell') });
}"""


def test_a_notebook_shows_the_same_figure(browser: Browser) -> None:
    from base64 import b64encode

    figure = figures()["return"]
    page = browser.new_context(viewport={"width": 900, "height": 900}).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.expose_function("kernelFile", figure.file)
    page.set_content('<!doctype html><html lang="en"><body><div id="cell"></div></body></html>')
    page.add_style_tag(content=(ASSETS / "widgets.css").read_text("utf8"))
    source = b64encode(notebook_module().encode()).decode()
    page.evaluate(SHIM, {"source": source, "spec": figure.spec, "state": figure.state, "still": figure.still})
    cell = page.locator("#cell")
    _start(page, cell)
    _moving(page, cell)
    page.evaluate("end()")
    page.context.close()
    assert errors == []
