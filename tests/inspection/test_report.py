"""`dmm inspect`: the files it writes, and that their numbers are those of `dmm.inspection`."""

import dataclasses
import json

import matplotlib.image
import pytest
import torch

from dmm.cli import main
from dmm.data.preview import preview
from dmm.errors import RunError
from dmm.inspection import activations, full_windows, gradient_norms, token_norms
from dmm.inspection.reach import reach
from dmm.inspection.report import inspect
from dmm.training import train

SMALL = {"width": 8, "layers": 2, "batch_size": 4, "context": 3}
MAZE = "dmm/pointmaze/umaze-v0"


@pytest.fixture(scope="module")
def data():
    return preview(MAZE, 100)


@pytest.fixture
def run(data, tmp_path):
    return train(data, "mamba", steps=2, out=tmp_path / "run", changes=SMALL, progress=False, device="cpu")


def test_numbers_are_those_of_the_policy_on_windows_of_its_data(run, data, datasets_path, tmp_path):
    result = inspect(run, tmp_path / "out", windows=16, seed=3)
    assert json.loads((tmp_path / "out" / "inspection.json").read_text()) == result
    windows = full_windows(data, 3, 16, seed=3)  # the data set itself is not here: its recipe's first episodes are
    assert list(result["norms"]) == list(activations(run.policy, windows))
    assert result["gradients"]["action"] == gradient_norms(run.policy, windows).tolist()
    assert result["tokens"][:4] == ["rtg 0", "state 0", "action 0", "rtg 1"]
    last = activations(run.policy, windows)["layer 2, output"]
    torch.testing.assert_close(torch.tensor(result["norms"]["layer 2, output"]), token_norms(last))
    assert list(result["gates"]) == ["layer 1", "layer 2"]


def test_every_named_file_is_a_picture_with_something_on_it(run, datasets_path, tmp_path):
    result = inspect(run, tmp_path, windows=4)
    assert result["files"] == [
        "inspection.json",
        "activations.png",
        "norms.png",
        "gradients.png",
        "gates.png",
        "reach.png",
    ]
    for name in result["files"][1:]:
        picture = matplotlib.image.imread(tmp_path / name)
        assert picture.shape[1] > 300 and picture[..., :3].std() > 0.05


def test_a_policy_without_gates_has_no_picture_of_them(data, datasets_path, tmp_path):
    run = train(data, "dt", steps=2, out=tmp_path / "run", changes=SMALL, progress=False, device="cpu")
    assert "gates.png" not in inspect(run, tmp_path, windows=4)["files"]


def test_the_command_writes_beside_the_run(run, datasets_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(run.path), "--windows", "4", "--json"])
    assert stopped.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model"] == "mamba" and printed["step"] == 2
    assert {file.name for file in (run.path / "inspection").iterdir()} == set(printed["files"])


def test_no_windows_is_one_line(run, datasets_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(run.path), "--windows", "0"])
    lines = capsys.readouterr().err.splitlines()
    assert (
        stopped.value.code == 2
        and len(lines) == 1
        and "windows: got 0, allowed is a whole number of at least 1" in lines[0]
    )


def test_a_folder_that_cannot_be_made_is_one_error(run, datasets_path, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"out: .*file"):
        inspect(run, tmp_path / "file", windows=4)


@pytest.mark.parametrize("model", ["bc", "starformer"])
def test_models_without_the_frames_tokens_have_reach_and_cost(model, data, datasets_path, tmp_path):
    changes = {"width": 8, "layers": 1, "batch_size": 4}
    run = train(data, model, steps=2, out=tmp_path / "run", changes=changes, progress=False, device="cpu")
    result = inspect(run, tmp_path / "out")
    assert result["files"] == ["inspection.json", "reach.png"] and "norms" not in result
    assert result["weights"] == run.policy.parameter_count() and result["action"]["us"] > 0
    spans = reach(run.policy, last=True).last()
    assert result["reach"] == {name: span and list(span) for name, span in spans.items()} and spans["states"][1] == 0
    state = run.policy.init_state(1, 1.0)
    sizes = [getattr(state, field.name) for field in dataclasses.fields(state)]
    assert result["action"]["memory"] == sum(x.numel() * x.element_size() for x in sizes)
    assert matplotlib.image.imread(tmp_path / "out" / "reach.png").std() > 0.05
