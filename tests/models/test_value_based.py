"""TD3+BC, CQL and IQL: d3rlpy's updates in this package's loop, and their actors without d3rlpy."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm.data.trajectories import Trajectories
from dmm.data.transitions import TransitionSampler
from dmm.errors import InputError, RunError
from dmm.models.entry import Facts
from dmm.models.registry import MODELS
from dmm.models.value_based import EPSILON, CQLConfig, IQLConfig, TD3BCConfig
from dmm.training import load_run, train, train_seeds
from dmm.training.loop import Loop
from dmm.training.plan import make_plan
from dmm.training.run import default_generators

NAMES = ("td3bc", "cql", "iql")
SMALL: dict[str, Any] = {"width": 8, "layers": 2, "batch_size": 6, "log_every": 1, "checkpoint_every": 1}
HERE = importlib.util.find_spec("d3rlpy") is not None
needs_d3rlpy = pytest.mark.skipif(not HERE, reason="d3rlpy, of the value-based extra, is not installed")


def fit(name: str, data: Any, out: Path, **more: Any) -> Any:
    changes = SMALL | more.pop("changes", {})
    options: dict[str, Any] = {"steps": 5, "device": "cpu", "progress": False, "changes": changes}
    return train(data, name, out=out, **options | more)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())


def without_d3rlpy(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process that cannot import d3rlpy."""
    code = f"import sys; sys.modules['d3rlpy'] = None\n{code}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment, timeout=300
    )


class TestWithoutThePackage:
    @pytest.mark.parametrize("name", NAMES)
    def test_one_line_says_what_is_missing(
        self, name: str, trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "d3rlpy", None)  # as if it were not installed
        with pytest.raises(InputError) as caught:
            fit(name, trajectories, tmp_path / "run")
        assert str(caught.value) == f"model: '{name}' needs d3rlpy: pip install \"decision-metamamba[value-based]\""
        assert not (tmp_path / "run").exists()

    def test_one_that_does_not_work_says_why(
        self, trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "d3rlpy.py").write_text("import a_module_that_is_nowhere")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "d3rlpy", raising=False)
        with pytest.raises(InputError, match=r"'iql' needs d3rlpy: .*cannot be imported: No module named 'a_module"):
            fit("iql", trajectories, tmp_path / "run")
        (tmp_path / "d3rlpy.py").write_text("raise ValueError('Gym version is too outdated.')")
        importlib.invalidate_caches()
        with pytest.raises(InputError, match=r"'iql' needs d3rlpy, which does not work here \(Gym version"):
            fit("iql", trajectories, tmp_path / "run")

    def test_nothing_of_the_package_imports_it(self, tmp_path: Path) -> None:
        code = "import dmm, dmm.cli, dmm.training, dmm.evaluation, dmm.models.registry, dmm.inspection.cards as c\n"
        done = without_d3rlpy(code + "print([made['name'] for made in c.cards()][-3:])", tmp_path)
        assert done.returncode == 0 and done.stdout.strip() == str(list(NAMES)), done.stderr


@pytest.mark.parametrize("name", NAMES)
class TestConfigs:
    def test_rewards_and_recipe_by_domain(self, name: str) -> None:
        maze = MODELS[name].make_config(4, 2, "PointMaze_UMaze-v3")
        assert (maze.reward_scale, maze.reward_shift) == ((10.0, -5.0) if name == "cql" else (1.0, -1.0))
        facts = Facts(state_size=11, action_size=3, env_id="Hopper-v5", returns=(500.0, 3000.0))
        hopper = MODELS[name].config_for(facts, {})
        assert hopper.target_rate == (0.001 if name == "iql" else 0.005)
        assert (hopper.reward_scale, hopper.reward_shift) == (0.4 if name == "iql" else 1.0, 0.0)
        assert MODELS[name].make_config(4, 2, "Hopper-v5").reward_scale == 1  # no returns are known
        published = MODELS[name].published
        assert published is not None and published(facts)["steps"] == 500_000
        assert published(dataclasses.replace(facts, env_id="dmm/AntMaze-v0"))["steps"] == 1_000_000

    def test_the_run_has_the_recipe_unless_told_otherwise(self, name: str, trajectories: Trajectories) -> None:
        options: Any = {"several": False, "steps": None, "device": "cpu", "resume": False, "start_from": None}
        plan, *_ = make_plan(trajectories, name, [0], None, {"learning_rate": "1e-3"}, **options)
        training = plan.config
        assert (training.batch_size, training.learning_rate, training.warmup, training.clip) == (256, 1e-3, 0.0, 0.0)

    def test_weights_are_those_of_the_actor(self, name: str) -> None:
        policy = MODELS[name].policy(MODELS[name].make_config(11, 3, "Hopper-v5"))
        assert policy.parameter_count() == (135_427 if name == "cql" else 69_635)


@pytest.mark.parametrize(
    ("kind", "field", "value", "allowed"),
    [
        (TD3BCConfig, "discount", 1.5, "0 to 1"),
        (TD3BCConfig, "target_rate", -0.1, "0 to 1"),
        (TD3BCConfig, "noise", -1.0, "0 or more"),
        (TD3BCConfig, "actor_every", 0, "at least 1"),
        (CQLConfig, "reward_scale", 0.0, "a positive number"),
        (CQLConfig, "gap", -1.0, "0 or more"),
        (CQLConfig, "sampled_actions", 0, "at least 1"),
        (IQLConfig, "expectile", 1.1, "0 to 1"),
        (IQLConfig, "dropout", 1.0, "0 <= dropout < 1"),
    ],
)
def test_a_field_out_of_range(kind: Any, field: str, value: float, allowed: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: got {value:g}, allowed is {allowed}"):
        kind(state_size=4, action_size=2, **{field: value})


class TestTransitions:
    def test_a_cut_episode_goes_on_and_an_ended_one_does_not(self, trajectories: Trajectories) -> None:
        behind = np.arange(trajectories.episodes * 4, dtype=np.float32).reshape(-1, 4)
        t = dataclasses.replace(trajectories, last_observations=behind)
        sampler = TransitionSampler(t)
        windows = sampler.gather(torch.arange(t.transitions))
        last = t.starts + t.lengths - 1
        np.testing.assert_array_equal(windows.next_states[last, 0], behind)
        assert torch.equal(windows.ended[last, 0, 0], torch.from_numpy(t.terminated).float())
        assert windows.ended.sum() == t.terminated.sum()
        assert torch.unique(sampler.draw(20, 50, torch.Generator().manual_seed(0))).tolist() == [*range(t.transitions)]

    def test_steps_whose_next_state_was_not_recorded_are_left_out(self, trajectories: Trajectories) -> None:
        t = dataclasses.replace(trajectories, last_observations=None)
        drawn = set(TransitionSampler(t).draw(20, 50, torch.Generator().manual_seed(0)).flatten().tolist())
        assert drawn == set(range(t.transitions)) - set((t.starts + t.lengths - 1)[~t.terminated].tolist())
        ones = dataclasses.replace(t, starts=np.arange(32), lengths=np.ones(32, int), terminated=np.zeros(32, bool))
        with pytest.raises(InputError, match="has no step with a known next state"):
            TransitionSampler(ones)


@needs_d3rlpy
class TestTraining:
    @pytest.mark.parametrize(("name", "updates"), [("td3bc", 200), ("iql", 200), ("cql", 20)])
    def test_losses_and_actions_are_finite(
        self, name: str, updates: int, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        run = fit(name, trajectories, tmp_path, steps=updates, changes={"log_every": 20, "checkpoint_every": 20})
        log = run.log
        assert set(log) == {"step", "loss", "learning_rate", "seconds", *run.policy.terms}
        assert all(np.isfinite(column).all() for column in log.values())
        np.testing.assert_allclose(log["loss"], sum(log[term] for term in run.policy.terms), rtol=1e-6)
        assert all(weight.isfinite().all() for weight in run.policy.parameters())
        action, _ = run.policy.act(run.policy.init_state(3, 0.0), torch.randn(3, 4))
        assert action.abs().max() <= 1

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("td3bc", {}),
            ("td3bc", {"decay": "matrices", "weight_decay": 0.1, "clip": 0.1, "warmup": 0.5, "standardise": False}),
            ("iql", {"dropout": 0.2}),
            ("cql", {"gap": 0.8, "max_backup": True}),
        ],
    )
    def test_a_killed_run_goes_on_to_the_same_bits(
        self,
        name: str,
        changes: dict[str, Any],
        trajectories: Trajectories,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        whole, write = fit(name, trajectories, tmp_path / "whole", changes=changes), Loop._write

        def stop(loop: Loop) -> None:
            write(loop)
            if loop.step == 3:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Loop, "_write", stop)
            with pytest.raises(KeyboardInterrupt):
                fit(name, trajectories, tmp_path / "run", changes=changes)
        torch.rand(7)  # the process is not where it was
        fit(name, trajectories, tmp_path / "run", changes=changes, resume=True)
        files = [(tmp_path / run / "checkpoint.safetensors").read_bytes() for run in ("whole", "run")]
        tensors = [importlib.import_module("safetensors.torch").load(content) for content in files]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())
        again = load_run(tmp_path / "run")
        for column, values in whole.log.items():
            if column != "seconds":
                np.testing.assert_array_equal(values, again.log[column])

    def test_seeds_are_trained_apart_and_it_is_said(
        self, trajectories: Trajectories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options: Any = {"changes": SMALL, "device": "cpu", "progress": False, "workers": 1, "steps": 3}
        runs = train_seeds(trajectories, "td3bc", seeds=(3, 4), out=tmp_path / "both", **options)
        out, err = capsys.readouterr()
        assert "one after the other: each is trained by updates of another package" in err and not out
        assert same(runs[1].policy, fit("td3bc", trajectories, tmp_path / "one", seed=4, steps=3).policy)

    def test_it_leaves_the_process_and_the_folder_as_they_were(
        self, trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        drawn = [torch.random.get_rng_state(), torch.from_numpy(np.random.get_state()[1].copy())]  # type: ignore[index]
        fit("td3bc", trajectories, tmp_path / "run")
        after = [torch.random.get_rng_state(), torch.from_numpy(np.random.get_state()[1])]  # type: ignore[index]
        assert all(torch.equal(one, other) for one, other in zip(drawn, after, strict=True))
        assert not list((tmp_path / "work").iterdir())
        assert {each.name for each in (tmp_path / "run").iterdir()} == {"run.json", "log.csv", "checkpoint.safetensors"}

    def test_stdout_is_the_result_alone_and_evaluation_needs_no_d3rlpy(
        self, tmp_path: Path, datasets_path: Path, make_dataset: Any
    ) -> None:
        import gymnasium as gym

        rng = np.random.default_rng(0)
        episodes = [(rng.normal(size=(9, 4)), rng.uniform(-1, 1, size=(8, 2)), rng.uniform(size=8)) for _ in range(3)]
        box = gym.spaces.Box(-10, 10, (4,), np.float64)
        make_dataset("tiny/value-v0", episodes, box, gym.spaces.Box(-1, 1, (2,), np.float64))
        sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
        command = ["train", "tiny/value-v0", "--model", "iql", "--steps", "3", "--out", "run", "--json", *sets]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        made = subprocess.run(
            [sys.executable, "-m", "dmm.cli", *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=300,
        )
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["model"] == "iql" and "unmaintained" not in made.stderr
        assert {each.name for each in tmp_path.iterdir()} == {"run", "datasets"}
        code = "import torch, dmm\nrun = dmm.load_run('run')\nplay = run.policy.act(run.policy.init_state(1, 0.0), "
        done = without_d3rlpy(code + "torch.ones(1, 4))[0]\nprint(play.tolist())", tmp_path)
        policy = load_run(tmp_path / "run").policy
        expected = policy.act(policy.init_state(1, 0.0), torch.ones(1, 4))[0]
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-6)

    def test_discrete_actions_and_a_start_from_another_run_are_refused(
        self, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        run = fit("td3bc", trajectories, tmp_path / "run", steps=1)
        with pytest.raises(
            InputError, match=r"^from: got .*run, allowed is none for 'td3bc', whose critics are not handed"
        ):
            fit("td3bc", trajectories, tmp_path / "more", start_from=run)
        rows = np.eye(2, dtype=np.float32)[np.arange(trajectories.transitions) % 2]
        discrete = dataclasses.replace(trajectories, actions=rows, discrete_actions=True)
        with pytest.raises(
            InputError, match=r"^model: 'iql' wants continuous actions, those of these data are discrete"
        ):
            fit("iql", discrete, tmp_path / "other")
        assert not (tmp_path / "more").exists() and not (tmp_path / "other").exists()

    def test_a_checkpoint_without_its_critics_is_one_line(self, trajectories: Trajectories, tmp_path: Path) -> None:
        fit("td3bc", trajectories, tmp_path, steps=2)
        file = tmp_path / "checkpoint.safetensors"
        module: Any = importlib.import_module("safetensors.torch")
        tensors, metadata = module.load_file(file), {"step": "2", "seconds": "1.0"}
        whole = dict(tensors)
        (name, *_) = [key for key in tensors if key.startswith("learner.q_funcs") and key.endswith("weight")]
        del tensors[name]
        module.save_file(tensors, file, metadata=metadata)
        with pytest.raises(InputError, match=r"has weights only, a run cannot go on from it \(no learner\.q_funcs"):
            fit("td3bc", trajectories, tmp_path, steps=3, resume=True)
        for damaged, reason in ((whole[name] * float("nan"), "is not finite"), (whole[name][:1], "do not fit")):
            module.save_file(whole | {name: damaged.clone()}, file, metadata=metadata)
            with pytest.raises(InputError, match=reason):
                fit("td3bc", trajectories, tmp_path, steps=3, resume=True)
        (name, *_) = [key for key in tensors if key.endswith(".exp_avg_sq")]
        module.save_file(whole | {name: -1 - whole[name]}, file, metadata=metadata)
        with pytest.raises(InputError, match=r"exp_avg_sq is negative"):
            fit("td3bc", trajectories, tmp_path, steps=3, resume=True)
        assert load_run(tmp_path).step == 2  # to evaluate, the actor is enough

    def test_critics_that_are_no_longer_finite_stop_the_run(self, trajectories: Trajectories, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="a lower learning_rate"):
            fit("iql", trajectories, tmp_path, steps=50, changes={"learning_rate": 1e30, "reward_scale": 1e20})


@needs_d3rlpy
@pytest.mark.parametrize("name", NAMES)
def test_its_updates_and_actions_are_d3rlpy_s_own(name: str, trajectories: Trajectories, tmp_path: Path) -> None:
    """d3rlpy's algorithm of its own, on the same batches through its own data types, scalers and `update`."""
    d3rlpy: Any = importlib.import_module("d3rlpy")
    dataset: Any = importlib.import_module("d3rlpy.dataset")
    updates, changes = 6, SMALL | {"reward_scale": 2.0, "reward_shift": -1.0}
    options: Any = {"several": False, "steps": updates, "device": "cpu", "resume": False, "start_from": None}
    plan, [seed], _ = make_plan(trajectories, name, [0], None, changes, **options)
    ours = plan.run(seed, tmp_path, default_generators)
    config, policy = ours.policy.config, ours.policy
    mean, std = policy.state_mean.numpy(), policy.state_std.numpy()
    encoder = d3rlpy.models.VectorEncoderFactory([8, 8])
    common = {
        "batch_size": 6,
        "actor_encoder_factory": encoder,
        "critic_encoder_factory": encoder,
        "observation_scaler": d3rlpy.preprocessing.StandardObservationScaler(mean=mean, std=std, eps=EPSILON),
    }
    rate = 3e-4
    cosine = d3rlpy.optimizers.lr_schedulers.CosineAnnealingLRFactory(T_max=updates)
    theirs: Any = {
        "td3bc": lambda: d3rlpy.algos.TD3PlusBCConfig(**common),
        "cql": lambda: d3rlpy.algos.CQLConfig(
            **common,
            actor_learning_rate=rate * config.actor_rate,
            temp_learning_rate=rate * config.actor_rate,
            critic_learning_rate=rate,
            alpha_learning_rate=0.0,
            alpha_threshold=0.0,
            conservative_weight=10.0,
        ),
        "iql": lambda: d3rlpy.algos.IQLConfig(
            **common, actor_optim_factory=d3rlpy.optimizers.AdamFactory(lr_scheduler_factory=cosine)
        ),
    }[name]().create()
    theirs.create_impl((4,), 2)
    for part, module in vars(theirs.impl.modules).items():
        if isinstance(module, torch.nn.Module):
            module.load_state_dict(vars(ours.learner.impl.modules)[part].state_dict())  # type: ignore[union-attr]
    observations = np.random.default_rng(0).normal(3, 2, size=(5, 4)).astype(np.float32)

    def played() -> Tensor:
        return policy.act(policy.init_state(5, 0.0), torch.from_numpy(observations))[0]

    torch.testing.assert_close(played(), torch.from_numpy(theirs.predict(observations)), rtol=0, atol=1e-6)
    drawn = plan.sampler.draw(updates, 6, torch.Generator().manual_seed(0))
    before, generator = played(), torch.random.get_rng_state()
    for made, index in enumerate(drawn):
        ours.learner.update(plan.sampler.gather(index), made, rate, made / updates)  # type: ignore[union-attr]
    torch.random.set_rng_state(generator)
    for index in drawn:
        w: Any = plan.sampler.gather(index).map(lambda field: field[:, 0])
        batch = dataset.TransitionMiniBatch(
            observations=w.states.numpy(),
            actions=w.actions.numpy(),
            rewards=(w.rewards * 2 - 1).numpy(),
            next_observations=w.next_states.numpy(),
            next_actions=w.actions.numpy(),
            terminals=w.ended.numpy(),
            intervals=np.ones((6, 1), dtype=np.float32),
            transitions=[],
        )
        theirs.update(batch)
    assert (played() - before).abs().max() > 1e-4
    torch.testing.assert_close(played(), torch.from_numpy(theirs.predict(observations)), rtol=0, atol=1e-6)
    for part, module in vars(theirs.impl.modules).items():
        if isinstance(module, torch.nn.Module):
            there = vars(ours.learner.impl.modules)[part].state_dict()  # type: ignore[union-attr]
            for key, value in module.state_dict().items():
                torch.testing.assert_close(there[key], value, rtol=1e-5, atol=1e-6, msg=f"{part}.{key}")
