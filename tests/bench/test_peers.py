"""Other packages' code is found where it is installed, named where it is not, and computes what this package does."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from dmm.bench import peers
from dmm.bench.peers import compiled_loop, disagreement, find, find_scans, outputs_and_gradients, plain_loop, versions
from dmm.bench.scan import make_inputs
from dmm.scan import selective_scan
from tests.own_process import CANNOT, run_python

CPU = torch.device("cpu")
SIZES = [(2, 7, 3, 2), (1, 1, 1, 1), (3, 24, 16, 4)]


def inputs_of(sizes: tuple[int, ...], **options: Any) -> dict[str, Any]:
    """Without softplus saturating: step sizes that let every input matter."""
    inputs = make_inputs(*sizes, CPU, **options)
    inputs["delta_bias"] = torch.zeros(sizes[2], requires_grad=True)
    return inputs


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("peer", find_scans()[0], ids=lambda peer: peer.name)
def test_a_peer_gives_the_outputs_and_gradients_of_the_package(peer: peers.Peer, sizes: tuple[int, ...]) -> None:
    inputs = inputs_of(sizes, channels_first=peer.channels_first)
    found = outputs_and_gradients(peer.scan, inputs)
    expected = outputs_and_gradients(selective_scan, inputs)
    assert len(found) == 9 and found[0].shape == sizes[:3]
    assert disagreement(found, expected) < 1e-4


@pytest.mark.parametrize("sizes", SIZES)
def test_the_plain_loop_does_too(sizes: tuple[int, ...]) -> None:
    inputs = inputs_of(sizes)
    found, expected = (outputs_and_gradients(scan, inputs) for scan in (plain_loop, selective_scan))
    assert disagreement(found, expected) < 1e-4


def test_the_peers_of_the_test_environment_are_found() -> None:
    found, missing = find_scans()
    assert [peer.name for peer in found] == ["selective_scan_ref", "mambapy", "transformers"] and not missing
    assert versions()["mambapy"] == metadata.version("mambapy")


def test_d3rlpy_s_transformer_acts_if_it_is_there() -> None:
    if versions()["d3rlpy"] is None:
        pytest.skip("d3rlpy, of the value-based extra, is not installed")
    actor = peers.d3rlpy_dt(11, 3, 8, 1, 4).as_stateful_wrapper(target_return=1.0)
    assert actor.predict(torch.zeros(11).numpy(), 0.0).shape == (3,)


def test_packages_that_are_not_installed_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "versions", lambda: dict.fromkeys(peers.PACKAGES))
    assert find_scans() == ([], dict.fromkeys(("selective_scan_ref", "mambapy", "transformers"), "not installed"))


def test_a_package_that_cannot_be_imported_is_listed_with_its_reason() -> None:
    def fails() -> None:
        raise OSError("libsomething.so: cannot open\nmore")

    assert find(fails) == (None, "does not work here (libsomething.so: cannot open)")
    assert find(lambda: 3) == (3, "")


def test_stand_ins_are_gone_after_the_import() -> None:
    peers._mamba_simple.cache_clear()
    peers.official_block(8)
    assert not [name for name in sys.modules if name.startswith("mamba_ssm") or name == "selective_scan_cuda"]


def test_compiled_code_is_used_only_if_its_gradients_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of((2, 3, 4, 2))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    right = compiled_loop(inputs)
    assert right.scan is plain_loop and not right.reason and right.seconds > 0

    def wrong(**inputs: Any) -> torch.Tensor:
        y = plain_loop(**inputs)
        return y + (inputs["u"] - inputs["u"].detach()) * 0.1  # the right value, another gradient

    monkeypatch.setattr(torch, "compile", lambda function, **_: wrong)
    off = compiled_loop(inputs)
    assert off.scan is None and "off by" in off.reason

    def broken(**inputs: Any) -> torch.Tensor:
        raise RuntimeError("no compiler\n...")

    monkeypatch.setattr(torch, "compile", lambda function, **_: broken)
    assert compiled_loop(inputs)[:2] == (None, "torch.compile failed (no compiler)")


def test_torch_compile_keeps_the_gradients_of_the_loop() -> None:
    """In a process of its own, which torch's compiler changes, and only where it compiles a trivial function at all."""
    code = f"""
import sys
import torch
from tests.bench.test_peers import compiled_loop, disagreement, inputs_of, outputs_and_gradients, plain_loop

torch.set_num_threads(1)
inputs = inputs_of((2, 3, 4, 2))
compiled = compiled_loop(inputs)
if compiled.scan is None:
    try:
        torch.compile(lambda x: 2 * x.sin())(torch.ones(3))
    except Exception as error:
        print("torch.compile cannot compile anything here:", *str(error).split("\\n")[:1], file=sys.stderr)
        sys.exit({CANNOT})
    sys.exit(compiled.reason)
inputs = inputs_of((2, 3, 4, 2))
print(disagreement(*(outputs_and_gradients(scan, inputs) for scan in (compiled.scan, plain_loop))))
"""
    with python_without_spaces() as (python, scratch):
        assert float(run_python(code, python=python, seconds=900, TORCHINDUCTOR_CACHE_DIR=scratch)) < 1e-4


@contextlib.contextmanager
def python_without_spaces() -> Iterator[tuple[str, str]]:
    """This Python and a scratch folder at places without a space, where torch's own call of the linker breaks.

    A virtual environment takes its place from the path that it is called by, so a link leads around a space in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        python = sys.executable
        if " " in sys.prefix and sys.prefix != sys.base_prefix:
            (Path(folder) / "here").symlink_to(sys.prefix)
            python = f"{folder}/here/{Path(sys.executable).relative_to(sys.prefix)}"
        yield python, f"{folder}/inductor"


def test_disagreement_is_a_part_of_the_largest_entry() -> None:
    a, b = torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0])
    assert disagreement([a], [b]) == pytest.approx(0.2)
    assert disagreement([a, a], [b, a]) == pytest.approx(0.2)
    assert not disagreement([a * float("nan")], [b]) <= 1


def test_whole_blocks_of_peers_can_be_made() -> None:
    x = torch.randn(2, 5, 8)
    for block in (
        peers.official_block(8, d_state=4, expand=2, d_conv=4),
        peers.transformers_mixer(8, 4, 2, 4),
        peers.mambapy_block(8, 4, 2, 4),
    ):
        assert block(x).shape == x.shape


def test_d3rlpy_is_asked_for_the_paper_s_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of it can be checked where it is not installed, too."""
    asked: dict[str, Any] = {}

    class Algorithm:
        def create_impl(self, shape: tuple[int, ...], actions: int) -> None:
            asked.update(shape=shape, actions=actions)

    class Config:
        def __init__(self, **sizes: Any):
            asked.update(sizes)

        def create(self, device: str) -> Algorithm:
            asked.update(device=device)
            return Algorithm()

    class Encoder:
        def __init__(self, widths: list[int], exclude_last_activation: bool):
            asked.update(widths=widths)

    module = type(sys)("d3rlpy")
    module.models = type("models", (), {"VectorEncoderFactory": Encoder})  # type: ignore[attr-defined]
    module.algos = type("algos", (), {"DecisionTransformerConfig": Config})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "d3rlpy", module)
    assert isinstance(peers.d3rlpy_dt(11, 3, 128, 3, 20), Algorithm)
    assert asked["widths"] == [128] and asked["context_size"] == 20 and asked["num_layers"] == 3
    assert (asked["shape"], asked["actions"], asked["device"]) == ((11,), 3, "cpu")
