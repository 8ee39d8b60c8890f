"""Live figures in which a policy acts: the page computes its actions and plays its world, while the reader watches.

A `LivePolicy` is a still picture, a specification and the names of the policies that act. On the site their weights are
files beside the pages; in Jupyter and Colab the kernel sends them when the figure is started. What happens then is in
`dmm/_assets`: live.js draws, worker.js plays, policy.js acts.

The specification, plain values:

| entry | what |
|---|---|
| `name`, `title`, `alt`, `controls`, `presets` | as an `Explorer` has; `when`: the setting that shows a control |
| `scene` | the control that chooses among the scenes, or None where there is one |
| `scenes` | name -> `lanes`, `arms`, `physics`, `start`, `range` and `format` of returns, see `Scene` |
| `speeds` | option of the control `speed` -> seconds of the world in a second; None for 1 |
| `count`, `seed` | episodes of each arm that a button plays, and the first one's start |
| `panels` | what is drawn below the scene, by name |
"""

from __future__ import annotations

import html
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import anywidget
import traitlets

from dmm.acting import ACTING, STATES
from dmm.errors import InputError
from dmm.export import describe_policy
from dmm.training import Run
from dmm.widgets.controls import Control, Spec, checked_settings, start_settings
from dmm.widgets.mujoco import file_script, mujoco_script
from dmm.widgets.parts import ASSETS, notebook_module

WAYS = tuple(way for way in ACTING if way != "cached")
"""Ways of acting that a page has."""
PANELS = ("seen", "episodes", "distances", "times")
PHYSICS = "mujoco"
"""The file of the physics; no policy may be called so."""


@dataclass(frozen=True)
class Of:
    """A value that a control chooses.

    Args:
        control: its name.
        values: what each of a `Select`'s options stands for; without it, the control's own value.
    """

    control: str
    values: Mapping[str, Any] | None = None

    def spec(self) -> Spec:
        return {"control": self.control} | ({} if self.values is None else {"of": dict(self.values)})


@dataclass(frozen=True)
class Lane:
    """One policy in a world of its own, or an episode that was recorded.

    Args:
        name: as the reader sees it.
        policy: one of the figure's policies.
        color: of `dmm.plots.COLORS`.
        way: how it acts: `window`, `recurrent` or `staggered`.
        states: of `staggered`.
        asked: the return that is asked of the whole episode.
        padding: whether a recurrence begins behind padding, as a window does.
        cut: what is taken away from the policy, as in `dmm/_assets/policy.js`; None for nothing.
        actions: recorded actions `(steps, a)`, each as the environment takes it, that are played instead.
        label: of its row of episodes; the return asked for if left out.
    """

    name: str
    policy: str
    color: str = "state"
    way: str | Of = "recurrent"
    states: int = STATES
    padding: bool = True
    asked: float | Of = 0.0
    cut: Mapping[str, Any] | Of | None = None
    actions: Sequence[Any] | None = None
    label: str | None = None

    def spec(self) -> Spec:
        if isinstance(self.way, str) and self.way not in WAYS:
            raise InputError(f"lane {self.name!r}: way is {self.way!r}; allowed: {', '.join(WAYS)}")
        shown: Spec = {"name": self.name, "policy": self.policy, "color": self.color, "label": self.label}
        shown |= {"way": _plain(self.way), "states": self.states, "asked": _plain(self.asked), "cut": _plain(self.cut)}
        shown |= {} if self.padding else {"padding": False}
        return shown if self.actions is None else shown | {"actions": [list(each) for each in self.actions]}


@dataclass(frozen=True)
class Scene:
    """What acts at once.

    Args:
        lanes: they begin at one start and go step by step together.
        returns: least and largest return that the axis of the episodes shows at least.
        arms: lanes of which only episodes are counted.
        physics: whether the world is MuJoCo's.
        start: the state that all episodes begin in, as the world's `reset` takes it; without it, a seed draws them.
        push: newtons of one push, where the world can be pushed.
        seconds_per_step: how long a step lasts where the world itself does not say.
    """

    lanes: Sequence[Lane]
    returns: tuple[float, float]
    arms: Sequence[Lane] = ()
    physics: bool = True
    start: Mapping[str, Any] | None = None
    push: float = 60.0
    seconds_per_step: float = 0.2

    def spec(self) -> Spec:
        low, high = map(float, self.returns)
        if not (self.lanes and high > low):
            raise InputError(f"scene: needs a lane, and returns that rise; got {len(self.lanes)} lanes, {self.returns}")
        shown: Spec = {"lanes": [lane.spec() for lane in self.lanes], "arms": [arm.spec() for arm in self.arms]}
        shown |= {"range": [low, high], "format": ".0f" if high > 20 else ".2f", "physics": self.physics}
        shown |= {"push": self.push, "seconds_per_step": self.seconds_per_step}
        return shown if self.start is None else shown | {"start": dict(self.start)}


@dataclass(frozen=True)
class LivePanel:
    """A picture below the scene.

    Args:
        kind: `seen`, the last steps as the first acting lane's policy sees them; `episodes`, the returns of each arm;
            `distances`, how far each lane is from the first; `times`, milliseconds for an action of each lane.
        caption: above it.
        height: in pixels.
    """

    kind: Literal["seen", "episodes", "distances", "times"]
    caption: str
    width: Literal["wide", "half"] = "wide"
    height: int = 220

    _LABELS: ClassVar[dict[str, Spec]] = {
        "seen": {"kind": "seen"},
        "episodes": {"kind": "episodes", "x_label": "return of an episode"},
        "distances": {"kind": "lines", "x_label": "step", "y_label": "metres", "x_range": "steps", "y_range": "metres"},
        "times": {"kind": "bars", "data": "times", "horizontal": True, "y_range": "limits", "format": ".2f",
                  "y_label": "milliseconds for an action", "x_label": "", "intervals": None, "highlight": None},
    }  # fmt: skip

    def spec(self, lanes: Sequence[Lane]) -> Spec:
        if self.kind not in PANELS:
            raise InputError(f"panel: kind is {self.kind!r}; allowed: {', '.join(PANELS)}")
        shown = {"name": self.kind, "caption": self.caption, "width": self.width, "height": self.height}
        shown |= self._LABELS[self.kind]
        if self.kind == "distances":
            others = enumerate(lanes[1:], 1)
            shown["y"] = [{"name": o.name, "data": f"lane {i}", "color": o.color, "style": "line"} for i, o in others]
        if self.kind == "times":
            shown |= {"names": [lane.name for lane in lanes], "color": [lane.color for lane in lanes]}
        return shown


@dataclass(frozen=True)
class Count:
    """Episodes that a button plays as fast as they go: so many of each arm, from the seeds `seed`, `seed + 1`, ..."""

    episodes: int = 20
    seed: int = 1000


@dataclass(frozen=True)
class Shown:
    """When a control is there: only while another one has this value."""

    control: str
    value: str


@dataclass(frozen=True)
class Layout:
    """What a figure has beside its scenes.

    Args:
        panels: below the scene.
        when: control -> when it is shown; the others always are.
        speeds: options of the control `speed`, with the seconds of the world that pass in one of the reader's.
        count: episodes that can be counted, where scenes have arms.
        presets: named settings; controls that a preset does not name go to their start.
    """

    panels: Sequence[LivePanel] = ()
    when: Mapping[str, Shown] = field(default_factory=dict)
    speeds: Mapping[str, float] | None = None
    count: Count | None = None
    presets: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)


class LivePolicy(anywidget.AnyWidget):
    """A figure in which trained policies act when the reader starts it.

    Args:
        name: id in the page and in its address.
        title: the figure's caption, one plain sentence without a full stop.
        alt: what the still picture shows.
        still: the picture, a png: for print, and for whoever does not start the figure.
        policies: name -> run; the site finds the weights of those that are kept with the package by their name there,
            such as `gating/hopper-dmm-seed0`.
        scenes: name -> what acts; with more than one, the control `scene` chooses.
        controls: `Slider`s and `Select`s.
        layout: panels, presets and the rest.
        scene: the control whose options are the names of the scenes.

    Raises:
        InputError: unknown names, a policy that a page cannot compute, or texts that are empty.
    """

    _esm = notebook_module()
    _css = ASSETS / "widgets.css"
    spec = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    still = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        name: str,
        title: str,
        alt: str,
        *,
        still: bytes,
        policies: Mapping[str, Run],
        scenes: Mapping[str, Scene],
        controls: Sequence[Control] = (),
        layout: Layout | None = None,
        scene: str | None = None,
    ) -> None:
        layout = Layout() if layout is None else layout
        spec = _written(name, title, alt, controls, layout)
        spec |= {"scene": scene, "scenes": {label: each.spec() for label, each in scenes.items()}}
        lanes = next(iter(scenes.values())).lanes if scenes else ()
        spec["panels"] = [panel.spec(lanes) for panel in layout.panels]
        _check(spec, policies, scene)
        self.policies = dict(policies)
        picture = f"data:image/png;base64,{b64encode(still).decode()}"
        super().__init__(spec=spec, state=start_settings(spec), still=picture)
        self.on_msg(self._send_file)

    @traitlets.validate("state")
    def _known_state(self, proposal: Any) -> dict[str, float | str]:
        return checked_settings(self.spec, proposal["value"])

    def file(self, name: str) -> str:
        """A script that the figure needs, as the site has it: the physics, or a policy's export.

        Raises:
            InputError: neither is there under this name, or a page cannot compute the policy.
            RunError: the physics cannot be had.
        """
        if name == PHYSICS:
            return mujoco_script()
        if name not in self.policies:
            raise InputError(f"name: got {name!r}, allowed are {', '.join([PHYSICS, *self.policies])}")
        return file_script(name, describe_policy(self.policies[name]))

    def _send_file(self, _: Any, content: Any, __: Any) -> None:
        """Answer the page, which asks for a file when its reader starts the figure."""
        name = content.get("load") if isinstance(content, dict) else None
        try:
            data = self.file(str(name)).encode()
        except Exception as error:  # the page says it; an exception here would be seen by nobody
            self.send({"name": name, "error": str(error)})
            return
        self.send({"name": name}, [data])

    def html(self) -> str:
        """The figure for a static page: the still picture, and the specification that a script brings to life."""
        payload = json.dumps(self.spec, separators=(",", ":")).replace("<", "\\u003c")
        name, alt, title = (html.escape(self.spec[key], quote=True) for key in ("name", "alt", "title"))
        return (
            f'<figure class="dmm-policy" data-widget="{name}"><div class="dmm-widget"><img src="{self.still}" '
            f'alt="{alt}"></div><figcaption>{title}</figcaption>'
            f'<script type="application/json">{payload}</script></figure>'
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        content, metadata = bundle
        return content | {"text/html": self.html(), "text/plain": f"LivePolicy({self.spec['title']!r})"}, metadata


def _plain(value: Any) -> Any:
    return value.spec() if isinstance(value, Of) else dict(value) if isinstance(value, Mapping) else value


def _written(name: str, title: str, alt: str, controls: Sequence[Control], layout: Layout) -> Spec:
    if not (name.strip() and title.strip() and alt.strip()):
        raise InputError(
            "name, title and alt must all say something: the page and its readers without pictures need them"
        )
    written = {control.name: control.spec() for control in controls}
    if len(written) != len(controls):
        raise InputError(f"names of controls must all differ; got {[control.name for control in controls]}")
    for control, shown in layout.when.items():
        if control not in written or shown.value not in written.get(shown.control, {}).get("values", []):
            raise InputError(f"when: {control!r} while {shown.control!r} is {shown.value!r}: there is no such setting")
        written[control]["when"] = [shown.control, shown.value]
    if layout.speeds is not None and list(layout.speeds) != written.get("speed", {}).get("values"):
        raise InputError(f"speeds: got {list(layout.speeds)}; allowed are the options of a control named 'speed'")
    spec: Spec = {"name": name, "title": title, "alt": alt, "controls": list(written.values())}
    spec["speeds"] = None if layout.speeds is None else dict(layout.speeds)
    spec["count"], spec["seed"] = (layout.count.episodes, layout.count.seed) if layout.count else (None, None)
    spec["presets"] = {label: checked_settings(spec, settings) for label, settings in layout.presets.items()}
    return spec


def _check(spec: Spec, policies: Mapping[str, Run], scene: str | None) -> None:
    """Passes when every name in a specification means something."""
    controls = {control["name"]: control for control in spec["controls"]}
    options = controls[scene]["values"] if scene in controls else None
    if (scene is None) != (len(spec["scenes"]) == 1) or (scene is not None and options != list(spec["scenes"])):
        raise InputError(f"scene: got {scene!r} for {list(spec['scenes'])}; allowed: the control with these options")
    if PHYSICS in policies:
        raise InputError(f"policies: got one called {PHYSICS!r}, the name of the physics")
    for each in spec["scenes"].values():
        for lane in [*each["lanes"], *each["arms"]]:
            if lane["policy"] not in policies:
                raise InputError(f"lane {lane['name']!r}: policy {lane['policy']!r}; allowed: {', '.join(policies)}")
            for value in lane.values():
                if isinstance(value, dict) and "control" in value:
                    _check_choice(lane["name"], value, controls)
    if spec["count"] and not all(each["arms"] for each in spec["scenes"].values()):
        raise InputError("count: episodes of arms are to be played, and a scene has none")


def _check_choice(lane: str, value: Spec, controls: Mapping[str, Spec]) -> None:
    control = controls.get(value["control"])
    if control is None:
        raise InputError(f"lane {lane!r}: {value['control']!r} is no control; there are {sorted(controls)}")
    if "of" in value and list(value["of"]) != control["values"]:
        raise InputError(f"lane {lane!r}: {list(value['of'])} are not the options of {value['control']!r}")
