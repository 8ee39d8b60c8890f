from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from dmm.data.trajectories import Trajectories
from dmm.errors import InputError
from dmm.models.dmm import DMMConfig
from dmm.models.dt import DTConfig
from dmm.models.mamba import MambaConfig
from dmm.models.registry import MODELS, find_model, split_changes
from dmm.training import TrainConfig


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if not model.hidden])
@pytest.mark.parametrize("env_id", ["", "Hopper-v5", "AntMaze_UMaze-v5", "FrankaKitchen-v1"])
def test_every_name_builds_a_policy_that_acts(name: str, env_id: str, trajectories: Trajectories) -> None:
    model = find_model(name)
    with torch.random.fork_rng():
        policy = model.policy(model.make_config(4, 2, env_id, width=16, layers=1))
    sampler: Any = model.sampler(trajectories, policy.config, "cpu")
    windows = sampler.gather(sampler.draw(1, 3, torch.Generator().manual_seed(0))[0])
    assert isinstance(policy.config, model.config)
    assert policy(windows).shape == windows.actions.shape


@pytest.mark.parametrize("name", MODELS)
def test_every_name_is_described(name: str) -> None:
    assert MODELS[name].description and "\n" not in MODELS[name].description


def test_names_lead_to_the_readings_they_promise() -> None:
    sizes: dict[str, Any] = {"state_size": 11, "action_size": 3}
    assert MODELS["dmm"].make_config(11, 3, "Hopper-v5") == DMMConfig(**sizes)
    assert MODELS["dmm-paper"].make_config(11, 3, "Hopper-v5") == DMMConfig.paper(11, 3)
    assert MODELS["dmm-released"].make_config(11, 3, "Hopper-v5") == DMMConfig.released(11, 3)
    assert MODELS["mamba"].make_config(11, 3, "Hopper-v5") == MambaConfig(**sizes)
    assert MODELS["dt"].make_config(11, 3, "Hopper-v5") == DTConfig(**sizes)


def test_only_the_two_readings_fix_the_scale_of_returns() -> None:
    fixed = {name for name, model in MODELS.items() if not model.fit_rtg_scale and hasattr(model.config, "rtg_scale")}
    assert fixed == {"dmm-paper", "dmm-released"}


@pytest.mark.parametrize(
    ("env_id", "domain"),
    [
        ("HalfCheetah-v5", "mujoco"),
        ("", "mujoco"),
        ("AntMaze_UMaze-v5", "antmaze"),
        ("PointMaze_UMaze-v3", "antmaze"),
        ("FrankaKitchen-v1", "kitchen"),
    ],
)
def test_released_reading_follows_the_environment(env_id: str, domain: Any) -> None:
    assert MODELS["dmm-released"].make_config(4, 2, env_id) == DMMConfig.released(4, 2, domain=domain)


def test_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"^model: got 'gpt', allowed are dmm, dmm-paper, dmm-released, mamba, dt, "):
        find_model("gpt")


def split(changes: dict[str, Any], name: str = "dmm") -> tuple[dict[str, Any], dict[str, Any]]:
    return split_changes(changes, MODELS[name], TrainConfig)


class TestSplitChanges:
    def test_sorts_fields_by_their_owner(self) -> None:
        model, training = split({"width": 32, "batch_size": 8, "residual": "normalized", "clip": 1.0})
        assert model == {"width": 32, "residual": "normalized"} and training == {"batch_size": 8, "clip": 1.0}

    def test_nothing_to_change(self) -> None:
        assert split({}) == ({}, {})

    @pytest.mark.parametrize(
        ("field", "text", "value"),
        [
            ("width", "32", 32),
            ("learning_rate", "1e-3", 1e-3),
            ("rtg_scale", "10", 10.0),
            ("residual", "normalized", "normalized"),
            *(("share_dsm", word, True) for word in ("true", "True", "yes", "1")),
            *(("share_dsm", word, False) for word in ("false", "FALSE", "no", "0")),
        ],
    )
    def test_text_is_read_as_the_type_of_its_field(self, field: str, text: str, value: Any) -> None:
        model, training = split({field: text})
        read = (model | training)[field]
        assert read == value and type(read) is type(value)

    def test_whole_number_will_do_for_a_float(self) -> None:
        assert split({"clip": 1})[1] == {"clip": 1}

    @pytest.mark.parametrize(
        ("field", "value", "kind"),
        [
            ("width", "wide", "an int"),
            ("width", "3.5", "an int"),
            ("width", 3.5, "an int"),
            ("width", True, "an int"),
            ("width", None, "an int"),
            ("clip", "strict", "a float"),
            ("clip", False, "a float"),
            ("share_dsm", 1, "a bool"),
            ("residual", 3, "a str"),
        ],
    )
    def test_value_of_another_type_is_named(self, field: str, value: Any, kind: str) -> None:
        with pytest.raises(InputError, match=rf"^{field}: got {value!r}, allowed is {kind}$"):
            split({field: value})

    def test_text_that_is_neither_true_nor_false_is_named(self) -> None:
        with pytest.raises(InputError, match=r"^share_dsm: got 'maybe', allowed are true and false$"):
            split({"share_dsm": "maybe"})

    @pytest.mark.parametrize("field", ["depth", "conv_width", "", "Width"])
    def test_unknown_field_is_answered_with_the_known_ones(self, field: str) -> None:
        with pytest.raises(InputError, match=rf"^set: no field '{field}', allowed are .*batch_size.*width") as caught:
            split({field: 1})
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("field", ["state_size", "action_size", "steps", "seed"])
    def test_what_has_its_own_argument_cannot_be_set(self, field: str) -> None:
        with pytest.raises(InputError, match=f"^set: no field '{field}'"):
            split({field: 1})

    @pytest.mark.parametrize("name", MODELS)
    def test_every_other_field_can_be_set_to_its_own_default(self, name: str) -> None:
        fields = [*dataclasses.fields(MODELS[name].config), *dataclasses.fields(TrainConfig)]
        defaults = {f.name: f.default for f in fields if f.name not in ("state_size", "action_size", "steps", "seed")}
        model, training = split({field: str(value) for field, value in defaults.items()}, name)
        assert model | training == defaults
