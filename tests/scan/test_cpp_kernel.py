from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dmm import cpp
from dmm.scan import cpp_kernel, fused, scan_backends, selective_scan
from tests.scan.test_scan import Case, assert_same, make_case, outputs_and_gradients, run, without

# Where there is a compiler the kernel has to build, so that a fault in it is a failure and no skip.
pytestmark = pytest.mark.skipif(cpp.compiler() is None, reason="no C++ compiler here")


def in_systems(case: Case, g: int) -> Case:
    """The same case with `g` systems, all different."""
    generator = torch.Generator().manual_seed(5)
    scale = torch.rand(g, generator=generator, dtype=torch.float64).to(case["A"]) + 0.5
    each = {name: torch.stack([s * case[name] for s in scale]) for name in ("A", "D", "delta_bias") if name in case}
    return case | each


def one_by_one(case: Case, backend: str) -> tuple[torch.Tensor, ...]:
    """Every system by itself, on its own rows."""
    g = case["A"].shape[0]
    shared = {name: case[name].chunk(g) for name in case.keys() - {"A", "D", "delta_bias"}}
    own = {name: case[name] for name in ("A", "D", "delta_bias") if name in case}
    parts = [run({name: values[i] for name, values in (shared | own).items()}, backend) for i in range(g)]
    y, last = (torch.cat(part) for part in zip(*parts, strict=True))
    return y, last


class TestEqualsThePlainScan:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        "sizes",
        [
            {"b": 1, "length": 1, "e": 1, "n": 1},
            {"b": 2, "length": 33, "e": 17, "n": 5},  # one past a chunk, a register and a tile of states
            {"b": 1, "length": 32, "e": 16, "n": 4},  # exactly one of each
            {"b": 3, "length": 70, "e": 65, "n": 16},  # two groups of channels
            {"b": 1, "length": 100, "e": 3, "n": 40},
        ],
        ids=str,
    )
    def test_at_the_borders_of_chunks_registers_and_groups(self, sizes: dict[str, int], dtype: torch.dtype) -> None:
        case = make_case(**sizes, dtype=torch.float64)
        expected = outputs_and_gradients(lambda case: run(case, "sequential"), case)
        ours = outputs_and_gradients(lambda case: run(case, "cpp"), {k: v.to(dtype) for k, v in case.items()})
        assert_same(ours, {name: value.to(dtype) for name, value in expected.items()}, dtype, 10)

    def test_thousands_of_tokens_with_a_long_memory(self) -> None:
        case = make_case(b=1, length=5000, e=4, n=3)
        case["A"] = case["A"] * 1e-3
        expected = outputs_and_gradients(lambda case: run(case, "sequential"), case)
        assert_same(outputs_and_gradients(lambda case: run(case, "cpp"), case), expected, torch.float64, 100)
        single = outputs_and_gradients(lambda case: run(case, "cpp"), {k: v.float() for k, v in case.items()})
        assert_same(single, {k: v.float() for k, v in expected.items()}, torch.float32, 50)

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_the_number_of_threads_does_not_change_a_bit(self, threads: int) -> None:
        case = make_case(b=3, length=40, e=70, n=4, dtype=torch.float32)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            expected = outputs_and_gradients(lambda case: run(case, "cpp"), case)
            torch.set_num_threads(threads)
            ours = outputs_and_gradients(lambda case: run(case, "cpp"), case)
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(ours[name], expected[name]) for name in expected)

    def test_gradients_equal_finite_differences(self) -> None:
        case = {name: t.requires_grad_() for name, t in make_case(b=2, length=5, e=3, n=2).items()}
        assert torch.autograd.gradcheck(lambda *t: run(dict(zip(case, t, strict=True)), "cpp"), tuple(case.values()))


class TestSystems:
    @pytest.mark.parametrize("backend", [name for name in scan_backends() if name != "mamba-ssm"])
    @pytest.mark.parametrize("absent", [(), ("D", "delta_bias")], ids=["all", "A alone"])
    def test_systems_side_by_side_equal_each_by_itself(self, backend: str, absent: tuple[str, ...]) -> None:
        case = in_systems(without(make_case(b=6, length=9, e=5), *absent), 3)
        ours = outputs_and_gradients(lambda case: run(case, backend), case)
        assert_same(ours, outputs_and_gradients(lambda case: one_by_one(case, "sequential"), case), torch.float64)


class TestNumbers:
    """exp, softplus and the sigmoid are written out in the kernel: compared with torch's at every size of number."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_decay(self, dtype: torch.dtype) -> None:
        largest = math.log(torch.finfo(dtype).max)
        x = torch.cat([torch.linspace(-largest - 8, largest - 1, 4001), torch.linspace(-1, 1, 401)]).to(dtype)
        ones, zeros = torch.ones(len(x), 1, 1, dtype=dtype), torch.zeros(len(x), 1, 1, dtype=dtype)
        A = torch.ones(1, 1, dtype=dtype)
        y = selective_scan(zeros, x[:, None, None], A, ones, ones, initial_state=ones, backend="cpp")
        assert isinstance(y, torch.Tensor)
        tiny, expected = torch.finfo(dtype).tiny, torch.exp(x)
        large = expected > 2 * tiny
        relative = 4 * torch.finfo(dtype).eps * (1 + x.abs())  # the argument is rounded as well
        assert bool(((y[:, 0, 0] / expected - 1).abs() <= relative)[large].all())
        assert float(y[:, 0, 0][~large].abs().max()) <= 2 * tiny

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_step_size_and_gate(self, dtype: torch.dtype) -> None:
        x = torch.cat([torch.linspace(-100, 100, 801), torch.tensor([19.999, 20.0, 20.001, -1e-6, 0.0])]).to(dtype)
        row = x[:, None, None]
        ones = torch.ones_like(row)
        steps = selective_scan(ones, row, -ones[0] * 0, ones, ones, delta_softplus=True, backend="cpp")
        gates = selective_scan(0 * ones, ones, -ones[0], ones, ones, z=row, initial_state=ones, backend="cpp")
        eps = torch.finfo(dtype).eps
        softplus, silu = torch.nn.functional.softplus(row), torch.nn.functional.silu(row)
        assert bool(((steps - softplus).abs() <= eps * (4 + row.abs()) * softplus + 1e-37).all())
        assert bool(((gates - torch.exp(-ones) * silu).abs() <= eps * (8 + row.abs()) * silu.abs() + 1e-36).all())

    def test_an_unstable_system_overflows_to_infinity_and_not_to_nonsense(self) -> None:
        ones = torch.ones(1, 40, 1)
        y = selective_scan(ones, 50 * ones, torch.ones(1, 1), ones, ones, backend="cpp")
        assert isinstance(y, torch.Tensor) and bool((y[:, :1] > 0).all()) and y[0, -1, 0] == math.inf

    @pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00010, 0x7FC01FF0, 0x7FFFFFFF, -0x400000], ids=hex)
    def test_not_a_number_is_passed_on(self, bits: int) -> None:
        number = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
        case = make_case(b=1, length=4, e=2, n=3, dtype=torch.float32)
        case["delta"][0, 1, 0] = number
        y, _ = run(case, "cpp")
        assert bool(y[0, 1:, 0].isnan().all()) and bool(y[0, :, 1].isfinite().all()) and bool(y[0, 0].isfinite().all())


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Nothing is built yet, and the library goes into an empty folder."""
    monkeypatch.setenv("DMM_CACHE_DIR", str(tmp_path / "cache"))
    caches = (cpp_kernel._build_once, fused.kernels)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path / "cache"
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


class TestBuilding:
    def test_the_first_use_builds_and_the_next_finds(self, fresh: Path) -> None:
        assert cpp_kernel.status().reason.startswith("built with ")
        assert sorted(path.suffix for path in fresh.iterdir()) == [".sha256", ".so"]
        assert cpp_kernel.build().reason.startswith("found, ") and len(list(fresh.iterdir())) == 2

    def test_threads_that_come_first_together_all_get_it(self, fresh: Path) -> None:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: cpp_kernel.status(), range(4)))
        assert all(answer == answers[0] and answer.library is not None for answer in answers)
        assert len(list(fresh.iterdir())) == 2

    def test_without_a_compiler_the_plain_scan_is_taken_without_a_word(
        self, fresh: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
    ) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
        assert not cpp_kernel.available() and cpp_kernel.status().reason.startswith("no C++ compiler found")
        assert "cpp" not in scan_backends() and not fresh.exists() and not list(recwarn)
        case = make_case()
        assert all(torch.equal(a, b) for a, b in zip(run(case), run(case, "sequential"), strict=True))

    def test_with_a_compiler_that_fails_the_plain_scan_is_taken_and_said(
        self, fresh: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CXX", "false")
        with pytest.warns(RuntimeWarning, match="^the scan runs in plain torch.* could not build it") as caught:
            y, _ = run(make_case())
        assert len(caught) == 1 and "\n" not in str(caught[0].message)
        assert torch.equal(y, run(make_case(), "sequential")[0])

    def test_a_library_that_holds_something_else_is_not_offered(
        self, fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(cpp_kernel, "SOURCE", tmp_path / "other.cpp")
        cpp_kernel.SOURCE.write_text("")
        with pytest.warns(RuntimeWarning, match="left out dmm_forward_float, "):
            assert not cpp_kernel.available()

    def test_a_compiler_without_openmp_and_native_code_serves_too(
        self, fresh: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        picky = fresh.parent / "c++"
        real = cpp.compiler()
        assert real is not None
        picky.write_text(
            '#!/bin/sh\ncase "$*" in *-fopenmp*|*-march=native*) echo unknown >&2; exit 1;; esac\n'
            f'exec {real[0]} "$@"\n'
        )
        picky.chmod(0o755)
        monkeypatch.setenv("CXX", str(picky))
        assert cpp_kernel.available()
        case = make_case(b=2, length=40, e=9, n=5)
        expected = outputs_and_gradients(lambda case: run(case, "sequential"), case)
        assert_same(outputs_and_gradients(lambda case: run(case, "cpp"), case), expected, torch.float64)
