"""Weights from elsewhere: what is read, what is refused, and a released checkpoint as a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dmm
from dmm.errors import InputError
from dmm.models.official import from_official, read_weights
from dmm.models.registry import MODELS
from dmm.training import load_run
from dmm.training.importing import import_run
from tests.conftest import tiny_trajectories

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def dt() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The authors' Decision Transformer: state dict and sizes."""
    with np.load(GOLDEN / "dt.npz") as arrays:
        weights = {name.removeprefix("weights/"): arrays[name] for name in arrays.files if name.startswith("weights/")}
        return weights, json.loads(str(arrays["config"]))


class TestWeights:
    def test_arrays_tensors_and_files_are_the_same(self, dt: Any, tmp_path: Path) -> None:
        weights, config = dt
        tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
        save_file(tensors, tmp_path / "dt.safetensors")
        np.savez(tmp_path / "dt.npz", **weights)
        sources: list[Any] = [tensors, tmp_path / "dt.safetensors", str(tmp_path / "dt.npz"), GOLDEN / "dt.npz"]
        first = from_official("dt", weights, config)
        assert not first.training
        for source in sources:
            other = from_official("dt", source, config).state_dict()
            assert all(torch.equal(weight, other[name]) for name, weight in first.state_dict().items())

    def test_torchs_generator_is_as_before(self, dt: Any) -> None:
        before = torch.random.get_rng_state()
        from_official("dt", *dt)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_moments_come_from_the_config_or_the_weights(self, dt: Any) -> None:
        weights, config = dt
        mean, std = np.arange(5.0), np.arange(1.0, 6.0)
        with_them = [(weights, config | {"state_mean": mean.tolist(), "state_std": std.tolist()})]
        with_them.append((weights | {"state_mean": mean, "state_std": std}, config))
        for each, sizes in with_them:
            policy = from_official("dt", each, sizes)
            assert policy.state_mean.tolist() == mean.tolist() and policy.state_std.tolist() == std.tolist()

    def test_it_is_public(self) -> None:
        assert dmm.from_official is from_official


class TestRefused:
    def test_keys_that_are_missing_left_over_or_misshapen_are_listed_together(self, dt: Any) -> None:
        weights, config = dt
        missing, misshapen = sorted(weights)[3], "embed_state.weight"
        broken = {name: array for name, array in weights.items() if name != missing} | {"surplus.weight": np.zeros(2)}
        broken[misshapen] = np.zeros((2, 2))
        with pytest.raises(InputError) as caught:
            from_official("dt", broken, config)
        message = str(caught.value)
        assert message.startswith("weights: they are not those of this dt (")
        assert f"missing: {missing}" in message and "left over: surplus.weight" in message
        assert re.search(rf"of another shape: {re.escape(misshapen)} \(2, 2\) where [\w.]+ is \(32, 5\)", message)
        assert "\n" not in message

    def test_weights_of_another_size(self, dt: Any) -> None:
        weights, config = dt
        with pytest.raises(InputError, match=r"^weights: they are not those of this dt \(.*missing: .*and \d+ more"):
            from_official("dt", weights, config | {"layers": 4})

    def test_not_finite(self, dt: Any) -> None:
        weights, config = dt
        spoilt = weights | {"embed_state.weight": np.full_like(weights["embed_state.weight"], np.nan)}
        with pytest.raises(InputError, match=r"embed_state\.weight is not finite"):
            from_official("dt", spoilt, config)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"width": None}, r"^(config|width): .*"),
            ({"width": "wide"}, r"^(config|width): .*"),
            ({"heads": 5}, r"^heads: got 5, allowed are divisors of width 32"),
            ({"layers": 0}, r"^layers: got 0, allowed is at least 1"),
        ],
    )
    def test_sizes_that_cannot_be(self, dt: Any, change: dict[str, Any], message: str) -> None:
        weights, config = dt
        with pytest.raises(InputError, match=message):
            from_official("dt", weights, config | change)

    def test_a_size_that_is_missing_is_named(self, dt: Any) -> None:
        weights, config = dt
        with pytest.raises(InputError, match=r"^config: 'width' is missing, which dt needs"):
            from_official("dt", weights, {name: value for name, value in config.items() if name != "width"})

    def test_unknown_names(self, dt: Any) -> None:
        with pytest.raises(InputError, match=r"^model: got 'gpt', allowed are "):
            from_official("gpt", *dt)
        without = next(name for name, model in MODELS.items() if model.official is None and not model.hidden)
        with pytest.raises(InputError, match=rf"^name: got '{without}', which has no weights from elsewhere; allowed"):
            from_official(without, *dt)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("dt.pt", b"", r"^weights: got dt.pt, allowed are .safetensors and .npz; a pickle"),
            ("dt.npz", b"no archive", r"^weights: .*dt.npz cannot be read"),
            ("dt.safetensors", b"short", r"^weights: .*dt.safetensors cannot be read"),
        ],
    )
    def test_files_that_are_none(self, dt: Any, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            from_official("dt", tmp_path / name, dt[1])
        with pytest.raises(InputError, match=r"^weights: .* does not exist"):
            from_official("dt", tmp_path / "no.npz", dt[1])

    def test_arrays_of_objects_are_not_unpickled(self, dt: Any, tmp_path: Path) -> None:
        np.savez(tmp_path / "dt.npz", weight=np.array([{}], dtype=object))
        with pytest.raises(InputError, match=r"^weights: .*dt.npz cannot be read"):
            read_weights(tmp_path / "dt.npz")

    @pytest.mark.parametrize("weights", [None, 3, [("a", 1)]])
    def test_what_is_no_mapping(self, dt: Any, weights: Any) -> None:
        with pytest.raises(InputError, match=r"^weights: got \w+, allowed is a mapping"):
            from_official("dt", weights, dt[1])


class TestImport:
    def test_the_run_is_that_policy_and_takes_its_moments_from_the_data(self, dt: Any, tmp_path: Path) -> None:
        weights, config = dt
        data = tiny_trajectories(state_size=5, action_size=3)
        run = import_run("dt", weights, config, tmp_path / "run", dataset=data)
        there = load_run(tmp_path / "run").policy
        expected = from_official("dt", weights, config)
        expected.set_state_moments(*map(torch.from_numpy, data.state_moments()))
        assert run.step == 0 and run.info["imported"] is True
        assert all(torch.equal(w, there.state_dict()[name]) for name, w in expected.state_dict().items())
        with pytest.raises(InputError, match=r"^out: .*run already holds a run"):
            import_run("dt", weights, config, tmp_path / "run")

    def test_data_and_environments_of_other_sizes(self, dt: Any, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^dataset: 'tiny/linear-v0' has states and actions of 4 and 2 numbers"):
            import_run("dt", *dt, tmp_path / "run", dataset=tiny_trajectories())
        with pytest.raises(InputError, match=r"^environment: got one beside a dataset"):
            import_run("dt", *dt, tmp_path / "run", dataset=tiny_trajectories(), environment="Hopper-v5")
        assert not (tmp_path / "run").exists()

    def test_the_command_and_what_takes_its_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from dmm.cli import main

        sizes = {"state_size": 11, "action_size": 3, "context": 4, "width": 16, "layers": 1, "heads": 1}
        config = sizes | {"max_timestep": 30, "rtg_scale": 1000.0}
        model = MODELS["dt"]
        assert model.official is not None
        policy, theirs = model.policy(model.official.config(config)), {}
        for own, source in model.official.sources(policy).items():  # the authors' names for weights of any kind
            name, stored = (source, False) if isinstance(source, str) else (source[0], True)
            weight = policy.state_dict()[own].detach()
            theirs[name] = (weight.mT if stored else weight).contiguous().clone()
        save_file(theirs, tmp_path / "released.safetensors")
        (tmp_path / "sizes.json").write_text(json.dumps(config))
        out = tmp_path / "run"
        words = ["import", "dt", str(tmp_path / "released.safetensors"), "--config", str(tmp_path / "sizes.json")]
        with pytest.raises(SystemExit) as end:
            main([*words, "--out", str(out), "--environment", "Hopper-v5", "--json"])
        assert end.value.code == 0
        assert json.loads(capsys.readouterr().out)["parameters"] == policy.parameter_count()
        done = dmm.evaluate(out, episodes=2, targets=3600.0, max_steps=5, progress=False)
        assert done.scores[0].lengths.tolist() == [5, 5] and done.scores[0].normalized_score is not None
        with pytest.raises(SystemExit) as end:
            main([*words, "--out", str(out)])
        assert end.value.code == 2 and "already holds a run" in capsys.readouterr().err


class TestMoments:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"state_mean": [0.0] * 5}, r"^state_std: got none beside the other moment"),
            ({"state_mean": [0.0] * 5, "state_std": [1.0] * 4}, r"^state_std: got shape \(4,\), allowed is \(5,\)"),
            ({"state_mean": [0.0] * 5, "state_std": [0.0] * 5}, r"^state_std: got \[0\.0, .*allowed are positive"),
            ({"state_mean": [float("nan")] * 5, "state_std": [1.0] * 5}, r"^state_mean: got .*allowed are finite"),
            ({"state_mean": "none", "state_std": [1.0] * 5}, r"^state_mean: got str, allowed are 5 numbers"),
        ],
    )
    def test_that_are_none(self, dt: Any, given: dict[str, Any], message: str) -> None:
        weights, config = dt
        with pytest.raises(InputError, match=message):
            from_official("dt", weights, config | given)

    def test_those_of_the_config_go_before_those_beside_the_weights(self, dt: Any) -> None:
        weights, config = dt
        beside = weights | {"state_mean": np.zeros(5), "state_std": np.ones(5)}
        policy = from_official("dt", beside, config | {"state_mean": [2.0] * 5, "state_std": [3.0] * 5})
        assert policy.state_mean.tolist() == [2.0] * 5 and policy.state_std.tolist() == [3.0] * 5


class TestShapes:
    def test_weights_of_fewer_axes_are_named(self, dt: Any) -> None:
        weights, config = dt
        name = next(name for name in weights if name.endswith("c_attn.weight"))
        with pytest.raises(InputError, match=rf"of another shape: {re.escape(name)} \(3,\) where"):
            from_official("dt", weights | {name: np.zeros(3, dtype=np.float32)}, config)

    def test_complex_weights(self, dt: Any) -> None:
        weights, config = dt
        spoilt = weights | {"embed_state.weight": weights["embed_state.weight"].astype(np.complex64)}
        with pytest.raises(InputError, match=r"embed_state\.weight is complex"):
            from_official("dt", spoilt, config)

    def test_no_memory_is_taken_for_sizes_that_the_weights_do_not_have(self, dt: Any) -> None:
        weights, config = dt
        with pytest.raises(InputError, match=r"^config: (a dt of these sizes has|no dt can be as large)"):
            from_official("dt", weights, config | {"width": 2**20, "heads": 1})

    def test_one_array_is_no_archive(self, dt: Any, tmp_path: Path) -> None:
        np.save(tmp_path / "one.npy", np.zeros(3))
        (tmp_path / "one.npy").rename(tmp_path / "one.npz")
        with pytest.raises(InputError, match=r"one\.npz cannot be read \(it is one array"):
            from_official("dt", tmp_path / "one.npz", dt[1])


class TestWithoutData:
    def test_an_environment_of_other_sizes(self, dt: Any, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^environment: 'Hopper-v5' has \(observation, action\) shapes"):
            import_run("dt", *dt, tmp_path / "run", environment="Hopper-v5")

    def test_evaluation_invents_no_behaviour_and_no_target(self, tmp_path: Path) -> None:
        sizes = {"state_size": 4, "action_size": 2, "context": 4, "width": 16, "layers": 1, "heads": 1}
        config = sizes | {"max_timestep": 30, "rtg_scale": 1.0}
        model = MODELS["dt"]
        assert model.official is not None
        policy = model.policy(model.official.config(config))
        theirs = {}
        for own, source in model.official.sources(policy).items():
            weight = policy.state_dict()[own]
            theirs[source if isinstance(source, str) else source[0]] = weight if isinstance(source, str) else weight.mT
        run = import_run("dt", theirs, config, tmp_path / "run", environment="CartPole-v1")
        assert run.policy.discrete_actions
        with pytest.raises(InputError, match=r"^target: got none, and the run has no data"):
            dmm.evaluate(run, episodes=1, progress=False)
        assert dmm.evaluate(run, episodes=1, targets=10.0, progress=False).behaviour is None
