from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.scan.triton_process import (
    Arrays,
    compiled,
    outputs_and_gradients,
    random_case,
    selective_scan_gradients,
    triton_process,
    with_many_states,
)

if sys.platform != "linux":  # there the tests' packages bring it along
    pytest.importorskip("triton")

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
OPTIONAL = ("D", "z", "bias")
Run = Callable[..., Arrays]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Calls a function of `triton_process` on the GPU if there is one, else in Triton's interpreter."""
    if torch.cuda.is_available():
        yield lambda function, *args: function(*args, "cuda")
    else:
        with triton_process(TRITON_INTERPRET="1") as process:
            yield lambda function, *args: process.submit(function, *args, "cpu").result()


def plain(case: Arrays, softplus: bool = True) -> Arrays:
    """The definition, one token after the other in float64, with autograd's gradients."""
    t = {name: torch.from_numpy(array).double().requires_grad_() for name, array in case.items()}
    of_rows = {
        name: t[name].repeat_interleave(len(t["u"]) // len(t["A"]), 0) for name in ("A", "D", "bias") if name in t
    }
    delta = t["delta"] + of_rows["bias"][:, None] if "bias" in t else t["delta"]
    delta, h, rows = F.softplus(delta) if softplus else delta, t["start"], []
    for i in range(delta.shape[1]):
        step, u = delta[:, i, :, None], t["u"][:, i]
        h = torch.exp(step * of_rows["A"]) * h + step * u[..., None] * t["B"][:, i, None]
        rows.append((h * t["C"][:, i, None]).sum(-1) + (of_rows["D"] * u if "D" in t else 0.0))
    y = torch.stack(rows, 1) * (F.silu(t["z"]) if "z" in t else 1.0)
    leaves = [name for name in t if name not in ("dy", "dlast")]
    gradients = torch.autograd.grad((y * t["dy"]).sum() + (h * t["dlast"]).sum(), [t[name] for name in leaves])
    named = {"y": y, "last": h} | {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {name: tensor.detach().numpy() for name, tensor in named.items()}


def assert_same(ours: Arrays, exact: Arrays, tolerance: float) -> None:
    assert ours.keys() == exact.keys()
    for name, expected in exact.items():
        size = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(ours[name], expected, rtol=tolerance, atol=tolerance * size, err_msg=name)


def without(case: Arrays, *names: str) -> Arrays:
    return {name: array for name, array in case.items() if name not in names}


class TestDefinition:
    @pytest.mark.parametrize("softplus", [True, False])
    @pytest.mark.parametrize("absent", [(), *((name,) for name in OPTIONAL), OPTIONAL], ids="-".join)
    def test_equals_a_plain_loop(self, run: Run, absent: tuple[str, ...], softplus: bool) -> None:
        case = without(random_case(), *absent)
        if not softplus:
            case |= {name: np.abs(case[name]) for name in ("delta", "bias") if name in case}
        assert_same(run(outputs_and_gradients, case, softplus), plain(case, softplus), 1e-12)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize(
        "sizes",
        [
            {"b": 1, "length": 1, "e": 1, "n": 1},
            {"b": 1, "e": 3, "n": 1},
            {"length": 1, "e": 5},
            {"b": 4, "length": 16, "g": 2},
            {"b": 1, "length": 24, "e": 9, "n": 16},
            {"b": 1, "length": 17, "e": 2, "n": 130},
        ],
        ids=str,
    )
    def test_odd_sizes(self, run: Run, sizes: dict[str, int], dtype: Any) -> None:
        case = random_case(**sizes, dtype=dtype)
        assert_same(run(outputs_and_gradients, case, True), plain(case), TOLERANCE[dtype])

    @pytest.mark.parametrize("length", [15, 33, 64, 140])
    def test_chunks_and_segments(self, run: Run, length: int) -> None:
        case = random_case(b=1, length=length, e=2, n=3)
        assert_same(run(outputs_and_gradients, case, True), plain(case), 1e-11)

    def test_segments_of_several_rows_and_systems(self, run: Run) -> None:
        case = without(random_case(b=2, length=130, e=1, n=2, g=2), *OPTIONAL)
        assert_same(run(outputs_and_gradients, case, True), plain(case), 1e-11)

    def test_more_channels_than_a_program_takes(self, run: Run) -> None:
        case = random_case(b=2, length=5, e=40, n=16)
        assert_same(run(outputs_and_gradients, case, True), plain(case), 1e-12)

    @pytest.mark.parametrize("length", [1, 37])
    def test_many_states(self, run: Run, length: int) -> None:
        case = random_case(b=1, length=length, e=20, n=16)
        assert_same(run(with_many_states, case, True), plain(case), 1e-11)

    def test_long_sequence_in_float32(self, run: Run) -> None:
        case = random_case(b=1, length=140, e=1, n=2, dtype=np.float32)
        assert_same(run(outputs_and_gradients, case, True), plain(case), 2e-5)


class TestRange:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("delta", [0.0, 1e-8, 50.0])
    def test_extreme_steps(self, run: Run, delta: float, dtype: Any) -> None:
        case = without(random_case(length=20, dtype=dtype), "bias")
        case["delta"] = np.full_like(case["delta"], delta)
        ours = run(outputs_and_gradients, case, False)
        assert all(np.isfinite(array).all() for array in ours.values())
        assert_same(ours, plain(case, False), TOLERANCE[dtype])

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_softplus_from_one_end_to_the_other(self, run: Run, dtype: Any) -> None:
        """Relative to each step, not to the largest: with `A = -1`, one token and no decay, `y` is the step itself."""
        raw = np.concatenate([np.linspace(-30, 30, 61), [-80.0, -1e-3, 0.0, 19.999, 20.001, 80.0]]).astype(dtype)
        ones = np.ones_like(raw)[None, None]  # (1, 1, e)
        case = {"u": ones, "delta": raw[None, None], "dy": ones, "B": ones[..., :1], "C": ones[..., :1]}
        state = ones.transpose(0, 2, 1)
        case |= {"A": -state, "start": 0 * state, "dlast": 0 * state}
        ours = run(outputs_and_gradients, case, True)
        exact = torch.from_numpy(raw).double().requires_grad_()
        step = F.softplus(exact)
        slope = torch.autograd.grad(step.sum(), exact)[0]
        relative = 1e-5 if dtype is np.float32 else 1e-14  # exp(-80) rounds its exponent to 4e-6
        np.testing.assert_allclose(ours["y"].ravel(), step.detach().numpy(), rtol=relative)
        np.testing.assert_allclose(ours["gradient of delta"].ravel(), slope.numpy(), rtol=relative)

    def test_step_zero_keeps_the_state(self, run: Run) -> None:
        case = without(random_case(length=37), "bias")
        case["delta"] = np.zeros_like(case["delta"])
        assert np.array_equal(run(outputs_and_gradients, case, False)["last"], case["start"])


class TestPromises:
    def test_two_runs_agree_to_the_last_bit(self, run: Run) -> None:
        case = random_case(b=3, length=20, e=9, dtype=np.float32)
        first, second = (run(outputs_and_gradients, case, True) for _ in range(2))
        assert all(np.array_equal(first[name], second[name]) for name in first)

    def test_systems_side_by_side_equal_each_alone(self, run: Run) -> None:
        case = random_case(b=4, length=20, g=2, dtype=np.float32)
        together = run(outputs_and_gradients, case, True)
        for i in range(2):
            alone = run(outputs_and_gradients, {name: np.split(array, 2)[i] for name, array in case.items()}, True)
            assert all(np.array_equal(np.split(together[name], 2)[i], alone[name]) for name in alone)

    @pytest.mark.parametrize("g", [1, 2])
    def test_serves_selective_scan(self, run: Run, g: int) -> None:
        case = random_case(b=2, length=19, e=3, g=g)
        if g == 1:
            case |= {name: case[name][0] for name in ("A", "D", "bias")}
        stacked = case if g == 2 else case | {name: case[name][None] for name in ("A", "D", "bias")}
        exact = plain(stacked)
        exact |= {name: exact[name].reshape(case[name[12:]].shape) for name in exact if name[12:] in ("A", "D", "bias")}
        assert_same(run(selective_scan_gradients, case), exact, 1e-12)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    cache = str(tmp_path_factory.mktemp("triton"))
    with triton_process(TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache) as process:
        yield lambda *sizes: process.submit(compiled, *sizes).result()


class TestCompiler:
    """Triton compiles for a GPU that is not there; only running the result needs one."""

    @pytest.mark.parametrize(
        ("sizes", "kernels"),
        [((64, 24, 64, 16), 2), ((320, 24, 64, 16), 2), ((1, 16384, 64, 16), 4)],
        ids=["one seed", "five seeds", "one long sequence"],
    )
    def test_keeps_its_tiles_in_registers(self, compiler: Callable[..., Any], sizes: Any, kernels: int) -> None:
        made = compiler(*sizes, "float32")
        assert len(made) == kernels
        for name, kernel in made.items():
            assert ".target sm_90" in kernel["ptx"], name
            assert kernel["stack"] == 0, f"{name}: {kernel['stack']} bytes of a thread do not fit into registers"
            assert not re.search(r"\b(atom|red)\.", kernel["ptx"]), f"{name}: atomics, whose order is left to chance"

    @pytest.mark.parametrize(("sizes", "dtype"), [((1, 1, 1, 1), "float32"), ((2, 70, 3, 5), "float64")], ids=str)
    def test_odd_sizes_compile(self, compiler: Callable[..., Any], sizes: Any, dtype: str) -> None:
        assert all(".target sm_90" in kernel["ptx"] for kernel in compiler(*sizes, dtype).values())
