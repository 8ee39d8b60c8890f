"""What is cut is gone, and nothing else; the page cuts the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from dmm.errors import InputError
from dmm.experiments.node import run_node
from dmm.inspection.cuts import Cut, cut_policy, possible_cuts
from tests.assets.conftest import WAYS, actions_in_python, exported, moved, steps_of
from tests.assets.test_policy import ACT, SMALL

CASES: dict[str, tuple[str, dict[str, Any], Cut]] = {
    "return": ("dmm", {}, Cut(tokens=("rtg",))),
    "state": ("dmm", {}, Cut(tokens=("state",))),
    "action": ("dmm", {}, Cut(tokens=("action",))),
    "window": ("dmm", {}, Cut(window=(1,))),
    "window of a shared DSM": ("dmm", {"share_dsm": True}, Cut(window=(2,))),
    "window of each modality": ("dmm", {"local_mixer": "multimodal"}, Cut(window=(1, 2))),
    "window of each channel": ("dmm", {"local_mixer": "depthwise"}, Cut(window=(2,))),
    "gate": ("dmm", {}, Cut(gate=(2,))),
    "gate of Mamba-2": ("dmm", {"global_mixer": "mamba2", "head_size": 8}, Cut(gate=(1,))),
    "all": ("dmm", {}, Cut(tokens=("rtg", "action"), window=(1, 2), gate=(1, 2))),
    "convolution": ("mamba", {}, Cut(window=(1, 2))),
    "gate of stock Mamba": ("mamba", {}, Cut(gate=(1,))),
    "state of attention": ("dt", {}, Cut(tokens=("state",))),
}


@pytest.mark.parametrize("name", CASES)
def test_the_page_cuts_the_same(name):
    model, changes, cut = CASES[name]
    policy: Any = moved(model, **(SMALL | changes))
    steps = steps_of(policy, 9)
    ways = WAYS[:1] if model == "dt" else WAYS
    cases = [{"way": way, "states": states, "cut": asdict(cut)} for way, states in ways]
    given = {"policy": exported(policy, model), "steps": steps, "target": 3.0, "cases": cases}
    there = torch.tensor(run_node(ACT, given), dtype=torch.float64)
    here = torch.stack([actions_in_python(cut_policy(policy, cut), steps, 3.0, *way) for way in ways])
    assert (here - there).abs().max() < 1e-9
    whole = torch.stack([actions_in_python(policy, steps, 3.0, *way) for way in ways])
    assert (here - whole).abs().max() > 1e-3  # it is a cut


@pytest.mark.parametrize("name", CASES)
def test_the_policy_itself_stays_whole(name):
    model, changes, cut = CASES[name]
    policy: Any = moved(model, **(SMALL | changes))
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    cut_policy(policy, cut)
    assert all(torch.equal(value, before[key]) for key, value in policy.state_dict().items())


def test_a_window_that_is_cut_sees_the_token_alone():
    policy: Any = moved("dmm", **SMALL)
    mixers = [block.local_mixer for block in cut_policy(policy, Cut(window=(2,))).blocks]  # type: ignore[union-attr]
    x = torch.randn(1, 6, SMALL["width"])
    changed = x.clone()
    changed[:, 0] += 1
    first, second = ((mixer(changed) - mixer(x))[0].abs().amax(dim=1) for mixer in mixers)  # type: ignore[operator]
    assert (second[0] > 0) and (second[1:] == 0).all() and (first > 0).all()


def test_a_gate_that_is_cut_lets_nothing_through():
    policy: Any = moved("mamba", **SMALL)
    first, second = (block.mixer for block in cut_policy(policy, Cut(gate=(1,))).blocks)  # type: ignore[union-attr]
    x = torch.randn(1, 6, SMALL["width"])
    assert (first(x) == 0).all() and (second(x) != 0).any()  # type: ignore[operator]


def test_tokens_that_are_cut_do_not_matter():
    policy: Any = moved("dmm", **SMALL)
    one = cut_policy(policy, Cut(tokens=("rtg",)))
    steps = steps_of(policy, 9)
    asked = [actions_in_python(one, steps, target, "window", 1) for target in (-5.0, 5.0)]
    assert torch.equal(*asked)


def test_possible_cuts_and_others():
    assert possible_cuts(moved("dmm", **SMALL)) == Cut(("rtg", "state", "action"), (1, 2), (1, 2))  # type: ignore[arg-type]
    attention: Any = moved("dt", **SMALL)
    assert possible_cuts(attention) == Cut(("rtg", "state", "action"))
    with pytest.raises(InputError, match="cut: gate: got 1, allowed are none in this model"):
        cut_policy(attention, Cut(gate=(1,)))
    with pytest.raises(InputError, match="cut: window: got 3, allowed are 1, 2"):
        cut_policy(moved("dmm", **SMALL), Cut(window=(3,)))  # type: ignore[arg-type]
