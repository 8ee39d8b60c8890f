"""Which build of torch is asked for, with a pip that only writes down what it was asked."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIN, MIRROR = "torch==2.13.0", "https://mirror.test/cpu"


class Pip:
    """Does what it is told to be able to do; `installed` becomes the build that it installed."""

    def __init__(self, *able: str, installed: str = ""):
        self.able, self.installed, self.calls = able, installed, []  # type: ignore[var-annotated]

    def __call__(self, *words: str, quiet: bool = False, limit: float | None = None) -> bool:
        self.calls.append(words)
        kind = (
            "probe"
            if words[0] == "index"
            else "local"
            if "--no-index" in words
            else "index"
            if "--index-url" in words
            else "pypi"
        )
        if kind in self.able and kind != "probe":
            self.installed = "cuda" if kind == "pypi" else "cpu"
        return kind in self.able

    @property
    def kinds(self) -> list[str]:
        return [
            next((w for w in ("versions", "--no-index", "--index-url") if w in words), "pypi") for words in self.calls
        ]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_torch", ROOT / ".ci" / "install_torch.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(module, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    return module


def use(tool: ModuleType, pip: Pip, monkeypatch: pytest.MonkeyPatch, satisfied: bool = False) -> Pip:
    monkeypatch.setattr(tool, "pip", pip)
    monkeypatch.setattr(tool, "installed_build", lambda: pip.installed)
    monkeypatch.setattr(tool, "is_satisfied", lambda requirement: satisfied)
    return pip


def test_a_wheel_that_lies_where_pip_looks_is_taken_without_a_network(tool: ModuleType, monkeypatch) -> None:
    pip = use(tool, Pip("local", "probe", "index"), monkeypatch)
    line = tool.main(PIN, "auto", MIRROR)
    assert pip.kinds == ["--no-index"] and "2.13.0+cpu" in line and "\n" not in line


def test_else_torch_alone_comes_from_the_index_of_cpu_builds(tool: ModuleType, monkeypatch) -> None:
    pip = use(tool, Pip("probe", "index"), monkeypatch)
    assert MIRROR in tool.main(PIN, "auto", MIRROR)
    assert pip.kinds == ["--no-index", "versions", "--index-url"]
    assert "--no-deps" in pip.calls[-1] and PIN in pip.calls[-1] and MIRROR in pip.calls[-1]


@pytest.mark.parametrize(("able", "words"), [((), "cannot be reached"), (("probe",), f"has no {PIN}")])
def test_without_it_the_cuda_build_is_named_and_left_to_pip(tool, monkeypatch, able, words) -> None:
    pip = use(tool, Pip(*able), monkeypatch)
    line = tool.main(PIN, "auto", MIRROR)
    assert words in line and "4 GB" in line and "\n" not in line and "pypi" not in pip.kinds
    with pytest.raises(SystemExit, match=f"TORCH: got 'cpu', but {MIRROR} {words}"):
        tool.main(PIN, "cpu", MIRROR)


def test_an_index_that_never_answers_is_given_up(tool: ModuleType, monkeypatch) -> None:
    class Silent(Pip):
        def __call__(self, *words: str, quiet: bool = False, limit: float | None = None) -> bool:
            if words[0] == "index":
                assert limit is not None and "--retries" in words and "--timeout" in words
                raise subprocess.TimeoutExpired(words, limit)
            return super().__call__(*words, quiet=quiet, limit=limit)

    use(tool, Silent(), monkeypatch)
    assert "cannot be reached" in tool.main(PIN, "auto", MIRROR)


def test_with_a_gpu_or_on_another_system_it_is_left_to_pip(tool: ModuleType, monkeypatch) -> None:
    pip = use(tool, Pip("local"), monkeypatch)
    monkeypatch.setattr(tool, "has_nvidia_gpu", lambda: True)
    assert tool.main(PIN, "auto", MIRROR) == "" and not pip.calls
    assert tool.main(PIN, "cpu", MIRROR) and pip.kinds == ["--no-index"]  # asked for all the same
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert tool.main(PIN, "auto", MIRROR) == tool.main(PIN, "cpu", MIRROR) == ""
    with pytest.raises(SystemExit, match="TORCH: got 'cuda', but on Darwin"):
        tool.main(PIN, "cuda", MIRROR)


def test_the_cuda_build_can_be_asked_for_beside_a_local_cpu_wheel(tool: ModuleType, monkeypatch) -> None:
    pip = use(tool, Pip("local", "pypi"), monkeypatch)
    assert "CUDA" in tool.main(PIN, "cuda", MIRROR)
    assert pip.calls[-1][-1] == "torch===2.13.0"
    use(tool, Pip(), monkeypatch)
    with pytest.raises(SystemExit, match="no cuda build"):
        tool.main(PIN, "cuda", MIRROR)


def test_what_is_there_stays_and_is_not_silently_another(tool: ModuleType, monkeypatch) -> None:
    pip = use(tool, Pip("local", installed="cuda"), monkeypatch, satisfied=True)
    assert tool.main(PIN, "auto", MIRROR) == tool.main(PIN, "cuda", MIRROR) == "" and not pip.calls
    with pytest.raises(SystemExit, match=r"TORCH: got 'cpu', but \.venv holds torch's cuda build"):
        tool.main(PIN, "cpu", MIRROR)


def test_a_choice_that_is_none_is_refused(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match="TORCH: got 'gpu'; allowed: auto, cpu, cuda"):
        tool.main(PIN, "gpu", MIRROR)


@pytest.mark.parametrize(
    ("requirement", "version", "fits"),
    [(PIN, "2.13.0+cpu", True), (PIN, "2.13.0", True), (PIN, "2.12.1+cpu", False), ("torch>=2.4", "2.14.0+cpu", True)],
)
def test_a_build_of_the_version_counts_as_the_version(tool, monkeypatch, requirement, version, fits) -> None:
    monkeypatch.setattr(tool.importlib.metadata, "version", lambda name: version)
    assert tool.is_satisfied(requirement) is fits


@pytest.mark.parametrize(
    ("needs", "build"),
    [
        (["filelock", "nvidia-cublas==13; platform_system == 'Linux'"], "cuda"),
        (["cuda-toolkit"], "cuda"),
        (["filelock"], "cpu"),
    ],
)
def test_a_build_is_told_by_what_it_needs(tool, monkeypatch, needs, build) -> None:
    monkeypatch.setattr(tool.importlib.metadata, "requires", lambda name: needs)
    assert tool.installed_build() == build


@pytest.mark.parametrize(("lists", "found"), [("GPU 0: NVIDIA (UUID: x)", True), ("No devices were found", False)])
def test_a_gpu_is_one_that_nvidias_tool_lists(monkeypatch, tmp_path: Path, lists: str, found: bool) -> None:
    spec = importlib.util.spec_from_file_location("install_torch", ROOT / ".ci" / "install_torch.py")
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "Path", lambda path: tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not tool.has_nvidia_gpu()
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{lists}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert tool.has_nvidia_gpu() is found
