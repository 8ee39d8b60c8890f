"""The `dmm` command as a user meets it: exit codes, one line per error, JSON that parses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from dmm.cli import _print, main
from dmm.data import collect
from dmm.data.recipes import RECIPES
from tests.conftest import ROOT

STEPS = ("--steps", "4", "--set", "batch_size=4", "--set", "width=8", "--set", "layers=1")


@pytest.fixture
def dmm(capsys, monkeypatch, tmp_path):
    """Runs the command in an empty folder: exit code, stdout, and the lines of stderr that are no progress bar."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return (
            stopped.value.code,
            out,
            [line for line in err.replace("\r", "\n").splitlines() if line and "it/s" not in line],
        )

    return run


@pytest.fixture
def refused(dmm):
    """Expects exit code 2 and one line on stderr, which it returns."""

    def run(*arguments):
        code, out, lines = dmm(*arguments)
        assert (code, out) == (2, ""), (code, out, lines)
        assert len(lines) == 1 and lines[0].startswith("dmm: error: "), lines
        return lines[0]

    return run


def episode(length=6, size=3, reward=1.0):
    rng = np.random.default_rng(length)
    return rng.normal(size=(length + 1, size)), rng.uniform(-1, 1, size=(length, 2)), np.full(length, reward)


@pytest.fixture
def linear(make_dataset):
    """A small, well-formed data set of vectors that names no environment."""
    box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    make_dataset("tiny/linear-v0", [episode(6), episode(9), episode(12)], box)
    return "tiny/linear-v0"


@pytest.fixture
def maze(datasets_path, dmm):
    """A short point maze set, made by the command."""
    assert dmm("collect", "dmm/pointmaze/umaze-v0", "--transitions", 600, "--workers", 1)[0] == 0
    return "dmm/pointmaze/umaze-v0"


def test_what_is_printed_as_json_is_json(capsys):
    _print(True, {"score": float("nan"), "ends": (np.float32(1.5), float("-inf")), "steps": np.int64(3)}, "")
    assert json.loads(capsys.readouterr().out) == {"score": None, "ends": [1.5, None], "steps": 3}


def test_no_argument_prints_the_help(dmm):
    code, out, lines = dmm()
    assert code == 0 and lines == []
    for command in ("datasets", "collect", "models", "train", "evaluate"):
        assert command in out


@pytest.mark.parametrize(
    "command", ["datasets", "collect", "models", "train", "evaluate", "inspect", "reproduce", "export"]
)
def test_every_command_has_help_and_json(dmm, command):
    code, out, _ = dmm(command, "--help")
    assert code == 0 and "--json" in out


def test_the_installed_command_is_the_same_program():
    shown = subprocess.run([Path(sys.executable).parent / "dmm", "models"], capture_output=True, text=True, check=True)
    assert "stock Mamba" in shown.stdout


def test_datasets_says_what_is_here(dmm, maze):
    listed = json.loads(dmm("datasets", "--json")[1])["datasets"]
    here = {row["name"]: row["installed"] for row in listed}
    assert here["dmm/pointmaze/umaze-v0"]["transitions"] >= 600
    assert here["dmm/hopper/medium-v0"] is None


def test_models_lists_what_train_takes(dmm):
    names = [row["name"] for row in json.loads(dmm("models", "--json")[1])["models"]]
    assert {"dmm", "dmm-paper", "dmm-released", "mamba"} <= set(names)


def test_collect_train_evaluate(dmm, maze):
    code, out, _ = dmm("train", maze, *STEPS, "--out", "run", "--json")
    trained = json.loads(out)
    assert code == 0 and (trained["steps"], trained["model"], trained["run"]) == (4, "dmm", "run")
    code, out, _ = dmm("evaluate", "run", "--episodes", 3, "--target", 1, "--target", 0, "--json")
    result = json.loads(out)
    assert code == 0
    assert {"dataset", "model", "seed", "targets", "returns", "normalized_score", "ci95"} <= set(result)
    assert result["targets"] == [1.0, 0.0] and len(result["returns"]) == 3
    assert result["normalized_score"] == pytest.approx(100 * np.mean(result["returns"]))
    assert result["ci95"][0] <= result["normalized_score"] <= result["ci95"][1]
    code, out, _ = dmm("evaluate", "run", "--episodes", 2)
    assert code == 0 and "95 % interval" in out and "behaviour" in out


def test_export_writes_what_a_page_reads(dmm, maze, refused, tmp_path):
    assert dmm("train", maze, *STEPS, "--out", "run")[0] == 0
    code, out, lines = dmm("export", "run", "--to", "policy.json", "--json")
    told, made = json.loads(out), json.loads((tmp_path / "policy.json").read_text())
    assert (code, lines) == (0, []) and told["bytes"] == (tmp_path / "policy.json").stat().st_size
    assert (told["model"], told["step"], told["dataset"], told["world"]) == ("dmm", 4, maze, "point_maze")
    assert (made["format"], made["version"], made["config"]["width"]) == ("dmm-policy", 1, 8)
    assert made["environment"]["world"]["xml"].startswith("<mujoco") and made["returns"]["asked"] == [1.0]
    assert "dmm on dmm/pointmaze/umaze-v0" in dmm("export", "run", "--to", "other.json")[1]
    assert "policy.json is there already" in refused("export", "run", "--to", "policy.json")


def test_export_refuses_what_a_page_cannot_act_with(dmm, linear, refused, tmp_path):
    assert "run: " in refused("export", "nowhere", "--to", "a.json")
    for model, words in (("bc", "got the model 'bc'"), ("dc", "allowed are dmm, mamba, dt")):
        assert dmm("train", linear, "--model", model, *STEPS[:4], "--out", model)[0] == 0
        assert words in refused("export", model, "--to", "a.json")
    assert not (tmp_path / "a.json").exists()


def test_export_refuses_weights_that_half_precision_does_not_hold(dmm, linear, refused, tmp_path):
    assert dmm("train", linear, *STEPS, "--out", "run")[0] == 0
    file = tmp_path / "run" / "checkpoint.safetensors"
    tensors = load_file(file)
    tensors["policy.head.bias"][0] = 1e6
    save_file(tensors, file, metadata={"step": "4", "seconds": "1.0"})
    assert "the weights 'head.bias' are not finite, or beyond 65504" in refused("export", "run", "--to", "a.json")
    tensors["policy.head.bias"][0] = float("nan")
    save_file(tensors, file, metadata={"step": "4", "seconds": "1.0"})
    assert "policy.head.bias is not finite" in refused("export", "run", "--to", "a.json")


def test_export_into_a_folder_that_is_not_there_fails(dmm, linear):
    assert dmm("train", linear, *STEPS, "--out", "run")[0] == 0
    code, out, lines = dmm("export", "run", "--to", "nowhere/a.json")
    assert (code, out) == (1, "") and "cannot be written" in lines[0]


def test_a_policy_without_a_world_is_exported_all_the_same(dmm, linear):
    assert dmm("train", linear, *STEPS, "--out", "run")[0] == 0
    code, out, _ = dmm("export", "run", "--to", "a.json")
    assert code == 0 and "no world that a page can play" in out


def test_the_status_of_a_table_trains_nothing(dmm, tmp_path):
    code, out, _ = dmm("reproduce", "table9/hopper-medium", "--status", "--json")
    found = json.loads(out)
    assert code == 0 and (found["done"], found["jobs"]) == (0, 6) and not list(tmp_path.iterdir())
    assert [(cell["name"], cell["seeds"], cell["paper"]) for cell in found["cells"]] == [
        ("table9/hopper-medium/dmm", 0, 96.2),
        ("table9/hopper-medium/multimodal", 0, 95.4),
    ]
    code, out, _ = dmm("reproduce", "table9/hopper-medium", "--status")
    assert code == 0 and out.count("no result yet") == 2 and "0 of 6 jobs" in out


def test_every_model_trains(dmm, linear):
    for model in ("dmm", "dmm-paper", "dmm-released", "mamba"):
        assert dmm("train", linear, "--model", model, *STEPS, "--out", f"run-{model}")[0] == 0


def test_the_two_readings_keep_their_scale_of_returns(dmm, linear, tmp_path):
    scales = {}
    for model in ("dmm", "dmm-paper", "dmm-released"):
        dmm("train", linear, "--model", model, *STEPS, "--out", model)
        scales[model] = json.loads((tmp_path / model / "run.json").read_text())["config"]["rtg_scale"]
    assert scales == {"dmm": 1.0, "dmm-paper": 1000.0, "dmm-released": 1000.0}


def test_datasets_names_and_environments_stand_apart(dmm, datasets_path):
    words = [line.split() for line in dmm("datasets")[1].splitlines() if line.startswith("dmm/")]
    assert [(line[0], line[1]) for line in words] == [(recipe.name, recipe.env_id) for recipe in RECIPES.values()]


def test_datasets_lists_what_no_recipe_made(dmm, linear):
    assert json.loads(dmm("datasets", "--json")[1])["others"] == [linear]


def test_seeds_are_trained_one_after_the_other(dmm, linear):
    runs = json.loads(dmm("train", linear, *STEPS, "--seed", 5, "--seeds", 2, "--out", "runs", "--json")[1])["runs"]
    assert [(row["seed"], row["run"]) for row in runs] == [(5, "runs/seed5"), (6, "runs/seed6")]


def test_the_default_folder_names_data_model_and_seed(dmm, linear, tmp_path):
    dmm("train", linear, *STEPS, "--seed", 7)
    assert (tmp_path / "runs" / "tiny_linear-v0" / "dmm-seed7" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bogus",), "bogus"),
        (("train",), "dataset"),
        (("train", "x", "--steps", "many"), "--steps"),
        (("collect", "dmm/nowhere-v0"), "dmm/hopper/medium-v0"),
        (("collect", "dmm/pointmaze/umaze-v0", "--transitions", "0"), "transitions"),
        (("collect", "dmm/pointmaze/umaze-v0", "--workers", "0"), "workers"),
        (("train", "dmm/pointmaze/umaze-v0"), "dmm collect dmm/pointmaze/umaze-v0"),
        (("evaluate", "nowhere"), "nowhere"),
        (("reproduce", "tabel9"), "name: no table, row or cell 'tabel9'; allowed are, for example, table9"),
        (("reproduce", "table9", "--scale", "huge"), "scale: got 'huge', allowed are smoke, small, full"),
        (("reproduce", "table9", "--runner", "slurm"), "runner: got 'slurm', allowed are local, ray"),
        (("reproduce", "table9", "--seeds", "0"), "seeds: got 0"),
        (("reproduce", "table9", "--workers", "0"), "workers: got 0"),
        (("reproduce", "table9", "--hours", "-1"), "hours: got -1, allowed is a positive number"),
    ],
)
def test_wrong_words(refused, datasets_path, arguments, said):
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "lstm"), "lstm"),
        (("--set", "depth=3"), "depth"),
        (("--set", "window"), "FIELD=VALUE"),
        (("--set", "window=six"), "window"),
        (("--set", "window=25"), "24, the tokens of context 8"),
        (("--set", "padding=none"), "padding"),
        (("--set", "dropout=1"), "dropout"),
        (("--set", "state_size=3"), "state_size"),
        (("--steps", "0"), "steps"),
        (("--seeds", "0"), "seeds"),
        (("--threads", "0"), "threads"),
        (("--device", "abacus"), "abacus"),
        (("--seed", "-1"), "seed"),
        (("--seed", "99999999999999999999"), "seed"),
        (("--rewards", "doubled"), "rewards"),
        (("--best-share", "0"), "best_share"),
        (("--best-share", "1.01"), "best_share"),
    ],
)
def test_wrong_training_options(refused, linear, options, said):
    assert said in refused("train", linear, "--out", "run", *options)


def test_image_observations(refused, make_dataset):
    picture = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    images = (np.zeros((4, 8, 8, 3), np.uint8), np.zeros((3, 2)), np.ones(3))
    make_dataset("tiny/images-v0", [images], picture)
    assert "images" in refused("train", "tiny/images-v0")


def test_nan_rewards(refused, make_dataset):
    box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    make_dataset("tiny/nan-v0", [episode(4), episode(5, reward=np.nan)], box)
    assert "NaN" in refused("train", "tiny/nan-v0") and "episode 1" in refused("train", "tiny/nan-v0")


def test_actions_out_of_range(refused, make_dataset):
    box, narrow = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64), gym.spaces.Box(-1, 1, (2,), np.float32)
    states, actions, rewards = episode(5)
    make_dataset("tiny/wide-v0", [(states, 4 + actions, rewards)], box, narrow)
    assert "actions" in refused("train", "tiny/wide-v0", "--steps", "1")


def test_entries_of_a_dictionary_are_named(dmm, refused, make_dataset, tmp_path):
    box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    observations, actions, rewards = episode()
    seen = {"position": observations, "velocity": observations[:, :1], "noise": observations}
    space = gym.spaces.Dict({"position": box, "velocity": gym.spaces.Box(-9, 9, (1,), np.float64), "noise": box})
    make_dataset("tiny/parts-v0", [(seen, actions, rewards)], space)
    code, _, _ = dmm("train", "tiny/parts-v0", *STEPS, "--observation-keys", "velocity, position", "--out", "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert code == 0 and info["config"]["state_size"] == 4
    assert info["dataset"]["observation_keys"] == ["velocity", "position"]
    said = refused("train", "tiny/parts-v0", *STEPS, "--observation-keys", "speed", "--out", "other")
    assert "'speed'" in said and "'velocity'" in said


def test_what_the_data_cannot_give_is_one_line_and_no_failure(dmm, make_dataset):
    box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    parts = [episode(reward=1e5 + number) for number in range(4)]
    make_dataset("tiny/close-v0", parts, box)
    code, _, lines = dmm("train", "tiny/close-v0", *STEPS)
    said = [line for line in lines if not line.startswith("train: ")]  # but for the progress bar
    assert code == 0 and len(said) == 1 and said[0].startswith("dmm: warning: rewards: most returns of 'tiny/close-v0'")


def test_a_folder_that_cannot_be_written(refused, linear, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert "cannot be written" in refused("train", linear, *STEPS, "--out", "file/run")


def test_a_folder_that_holds_a_run(refused, dmm, linear):
    dmm("train", linear, *STEPS, "--out", "run")
    assert "--resume" in refused("train", linear, *STEPS, "--out", "run")
    assert "steps: got 3" in refused("train", linear, *STEPS[2:], "--steps", "3", "--out", "run", "--resume")
    assert "clip" in refused("train", linear, *STEPS, "--set", "clip=1", "--out", "run", "--resume")


def test_a_checkpoint_of_another_data_set(refused, dmm, linear, make_dataset):
    dmm("train", linear, *STEPS, "--out", "run")
    box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    make_dataset("tiny/other-v0", [episode(7)], box)
    assert "tiny/linear-v0" in refused("train", "tiny/other-v0", *STEPS, "--out", "run", "--resume")


def test_a_truncated_checkpoint(refused, dmm, linear, tmp_path):
    dmm("train", linear, *STEPS, "--out", "run")
    file = tmp_path / "run" / "checkpoint.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    assert "truncated" in refused("evaluate", "run")
    assert "truncated" in refused("train", linear, *STEPS, "--out", "run", "--resume")


def test_weights_alone_do_not_make_a_checkpoint(refused, dmm, linear, tmp_path):
    often = ("--set", "log_every=1", "--set", "checkpoint_every=1", "--set", "keep_every=2")
    dmm("train", linear, *STEPS, *often, "--out", "run")
    (tmp_path / "run" / "weights-0000002.safetensors").rename(tmp_path / "run" / "checkpoint.safetensors")
    assert "weights only" in refused("train", linear, *STEPS, *often, "--out", "run", "--resume")


@pytest.mark.parametrize(("option", "value"), [("--target", "nan"), ("--target", "inf"), ("--seed", "-1")])
def test_wrong_evaluation_options(refused, dmm, maze, option, value):
    dmm("train", maze, *STEPS, "--out", "run")
    assert option[2:] in refused("evaluate", "run", "--episodes", 1, option, value)


def test_a_run_whose_environment_is_unknown(refused, dmm, linear):
    dmm("train", linear, *STEPS, "--out", "run")
    assert "environment" in refused("evaluate", "run", "--episodes", 1)


def test_a_loss_that_is_not_finite_fails_the_run(dmm, linear):
    changes = ("--set", "learning_rate=1e30", "--set", "warmup=0", "--set", "clip=1e30")
    code, _, lines = dmm("train", linear, *STEPS, *changes, "--steps", "40", "--out", "run")
    assert code == 1 and lines[-1].startswith("dmm: error: loss: ")


def test_no_network_when_one_is_needed(refused, datasets_path, monkeypatch):
    import socket

    def unreachable(*arguments, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    assert "does not answer" in refused("train", "mujoco/hopper/medium-v0", "--download")


def test_a_finished_run_is_trained_further(dmm, linear):
    assert "4 updates" in dmm("train", linear, *STEPS, "--out", "run")[1]
    code, out, _ = dmm("train", linear, *STEPS[2:], "--steps", 6, "--out", "run", "--resume")
    assert code == 0 and "6 updates" in out
    assert "6 updates" in dmm("train", linear, *STEPS[2:], "--out", "run", "--resume")[1]


def test_a_run_starts_from_another_ones_weights(dmm, refused, linear, make_dataset):
    dmm("train", linear, *STEPS, "--out", "run")
    box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    make_dataset("tiny/other-v0", [episode(7)], box)
    code, out, _ = dmm("train", "tiny/other-v0", *STEPS, "--from", "run", "--out", "next")
    assert code == 0 and "4 updates" in out and json.loads(Path("next/run.json").read_text())["from"]["run"] == "run"
    assert "model" in refused("train", linear, "--model", "mamba", "--from", "run", "--out", "third")
    assert "no run at nowhere" in refused("train", linear, "--from", "nowhere", "--out", "third")


def test_inspect_looks_at_the_data_of_the_run_alone(dmm, refused, linear, make_dataset, datasets_path):
    dmm("train", linear, *STEPS, "--out", "run")
    code, out, _ = dmm("inspect", "run", "--windows", 2)
    assert code == 0 and "of its data set" in out
    shutil.rmtree(datasets_path / linear)
    box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    make_dataset(linear, [episode(10, reward=2.0)], box)
    assert "has been replaced" in refused("inspect", "run", "--windows", 2)
    code, out, _ = dmm("inspect", "run", "--windows", 2, "--data", linear)
    assert code == 0 and f"of {linear} (" in out


def test_inspect_knows_data_that_were_read_as_sums(dmm, linear):
    dmm("train", linear, *STEPS, "--rewards", "cumulative", "--out", "run")
    assert dmm("inspect", "run", "--windows", 2)[0] == 0


def test_a_part_of_the_data_with_rewards_at_the_end(dmm, maze):
    some = ("--rewards", "delayed", "--best-share", "0.5")
    code, out, _ = dmm("train", maze, *STEPS, *some, "--out", "run", "--json")
    name = f"{maze}+best-0.5+delayed"
    assert code == 0 and json.loads(out)["dataset"] == name
    data = json.loads(Path("run/run.json").read_text())["dataset"]
    assert (data["id"], data["best_share"], data["delayed_rewards"]) == (name, 0.5, True)
    assert data["mean_return"] > 0 and data["transitions"] < 500
    code, out, _ = dmm("evaluate", "run", "--episodes", 2, "--max-steps", 5, "--json")
    assert code == 0 and json.loads(out)["dataset"] == name
    assert dmm("inspect", "run", "--windows", 2)[0] == 0


def test_parts_of_a_data_set_have_folders_of_their_own(dmm, linear):
    for options in ((), ("--best-share", "0.4"), ("--rewards", "delayed")):
        assert dmm("train", linear, *STEPS, *options)[0] == 0
    assert len(list(Path("runs").iterdir())) == 3


def test_a_home_folder_may_be_written_as_a_tilde(dmm, linear, tmp_path, monkeypatch):
    home = tmp_path / "home dir ä"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    assert dmm("train", linear, *STEPS, "--out", "~/runs/mine/")[0] == 0
    assert dmm("inspect", "~/runs/mine", "--windows", 2, "--out", "~/seen")[0] == 0
    assert (home / "runs/mine/run.json").exists() and (home / "seen/norms.png").exists()
    (tmp_path / "datasets").rename(home / "sets")
    monkeypatch.setenv("MINARI_DATASETS_PATH", "~/sets/")
    assert linear in dmm("datasets")[1] and not (tmp_path / "~").exists()


class Full:
    """A stream on a disk without room."""

    encoding, errors = "utf-8", "strict"

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        pass


class Unread(Full):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize(
    ("stream", "code", "said"),
    [(Full(), 1, "output: standard output cannot be written"), (None, 1, "output: standard output is closed")],
    ids=["full", "closed"],
)
def test_output_that_cannot_be_written_is_one_line(dmm, monkeypatch, stream, code, said):
    monkeypatch.setattr(sys, "stdout", stream)
    got, _, lines = dmm("models")
    assert got == code and len(lines) == 1 and said in lines[0]


def test_a_reader_that_has_seen_enough_is_no_error(dmm, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Unread())
    assert dmm("models")[::2] == (141, [])


@pytest.mark.parametrize("stream", [Full(), None], ids=["full", "closed"])
def test_errors_that_cannot_be_written_leave_the_exit_code(dmm, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    assert dmm("train", "nowhere")[0] == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("redirection", "code"), [("> /dev/full", 1), (">&-", 0), ("2>&-", 0), ("2> /dev/full", 0), ("| head -c 0", 0)]
)
def test_a_shell_that_redirects_sees_no_traceback(redirection, code, tmp_path):
    command = f'"{sys.executable}" -m dmm.cli --help {redirection}'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == code and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert len(done.stderr.splitlines()) == (code == 1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory: there is not enough for this"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
            "memory: ",
        ),
        (RuntimeError("can't start new thread"), "memory: "),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "import: libtorch_cpu.so: failed"),
        (PermissionError(13, "Permission denied", "/sets/metadata.json"), "/sets/metadata.json: Permission denied"),
    ],
    ids=repr,
)
def test_what_the_machine_is_the_cause_of_is_one_line(dmm, monkeypatch, error, said):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(collect, "installed", fail)
    code, out, lines = dmm("datasets")
    assert (code, out) == (1, "") and len(lines) == 1 and said in lines[0]


def test_a_bug_stays_a_traceback(monkeypatch):
    def fail(*arguments):
        raise KeyError("a bug")

    monkeypatch.setattr(collect, "installed", fail)
    with pytest.raises(KeyError):
        main(["datasets"])
