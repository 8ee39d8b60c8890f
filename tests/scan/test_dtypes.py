"""Which numbers the scan takes, and in which precision it computes: the same for every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dmm.errors import InputError
from dmm.scan import parallel_scan, selective_scan, selective_step
from tests.scan.test_scan import BACKENDS, Case, make_case, run

HALF = (torch.float16, torch.bfloat16)
NO_REALS = (torch.complex64, torch.complex128, torch.int64, torch.uint8, torch.bool)
ARGUMENTS = tuple(make_case())
OF_WEIGHTS = ("A", "D", "delta_bias")


def one_step(case: Case) -> dict[str, Tensor]:
    """The arguments of `selective_step` for the first token."""
    first = {name: case[name][:, 0] for name in ("u", "delta", "B", "C", "z")}
    return {"state": case["initial_state"]} | first | {name: case[name] for name in OF_WEIGHTS}


class TestRefused:
    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    @pytest.mark.parametrize("dtype", NO_REALS, ids=str)
    @pytest.mark.parametrize("name", ARGUMENTS)
    def test_complex_and_whole_numbers_are_named(self, backend: str, dtype: torch.dtype, name: str) -> None:
        case = make_case(dtype=torch.float32)
        with pytest.raises(InputError, match=rf"^{name}: got dtype {dtype}, allowed are real numbers: ") as caught:
            run(case | {name: case[name].to(dtype)}, backend)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("dtype", NO_REALS, ids=str)
    def test_all_arguments_at_once(self, dtype: torch.dtype) -> None:
        with pytest.raises(InputError, match=rf"^u: got dtype {dtype}"):
            run({name: tensor.to(dtype) for name, tensor in make_case().items()})

    @pytest.mark.parametrize("dtype", NO_REALS, ids=str)
    @pytest.mark.parametrize("name", ["state", *ARGUMENTS[:-1]])
    def test_by_a_single_step_too(self, dtype: torch.dtype, name: str) -> None:
        arguments = one_step(make_case())
        with pytest.raises(InputError, match=rf"^{name}: got dtype {dtype}"):
            selective_step(**(arguments | {name: arguments[name].to(dtype)}))

    @pytest.mark.parametrize("name", ["a", "x", "initial_state"])
    @pytest.mark.parametrize("dtype", NO_REALS, ids=str)
    def test_by_the_recurrence_alone_too(self, dtype: torch.dtype, name: str) -> None:
        arguments = {"a": torch.rand(1, 3, 2), "x": torch.rand(1, 3, 2), "initial_state": torch.rand(1, 2)}
        with pytest.raises(InputError, match=rf"^{name}: got dtype {dtype}"):
            parallel_scan(**(arguments | {name: arguments[name].to(dtype)}))

    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    @pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D"])
    @pytest.mark.parametrize("value", [1.0, [1.0], None], ids=str)
    def test_what_is_no_tensor(self, backend: str, name: str, value: Any) -> None:
        if value is None and name == "D":
            return  # it may be left out
        with pytest.raises(InputError, match=rf"^{name}: got a {type(value).__name__}, allowed is a tensor$"):
            selective_scan(**(make_case() | {name: value}), backend=backend)


class TestPrecision:
    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    @pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
    def test_outputs_have_the_dtype_of_the_input(self, backend: str, dtype: torch.dtype) -> None:
        case = make_case(dtype=dtype)
        case |= {name: case[name].float() for name in OF_WEIGHTS}
        start = case.pop("initial_state")
        y, last = run(case, backend)
        assert y.dtype == last.dtype == dtype
        y, last = run(case | {"initial_state": start.double()}, backend)
        assert y.dtype == dtype and last.dtype == torch.float64

    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    @pytest.mark.parametrize("dtype", HALF, ids=str)
    def test_half_precision_is_computed_in_single(self, backend: str, dtype: torch.dtype) -> None:
        case = make_case(length=40, dtype=dtype)
        exact = run({name: tensor.double() for name, tensor in case.items()}, backend)
        for ours, other in zip(run(case, backend), exact, strict=True):
            torch.testing.assert_close(ours.double(), other, rtol=torch.finfo(dtype).eps, atol=1e-5)

    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    @pytest.mark.parametrize("name", ARGUMENTS)
    def test_one_argument_in_double_makes_all_of_it_double(self, backend: str, name: str) -> None:
        case = make_case(dtype=torch.float32)
        mixed = case | {name: case[name].double() + 1e-9}
        doubles = {name: tensor.double() for name, tensor in mixed.items()}
        for ours, other, like in zip(
            run(mixed, backend), run(doubles, backend), (mixed["u"], mixed["initial_state"]), strict=True
        ):
            assert torch.equal(ours, other.to(like.dtype))

    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    def test_gradients_have_the_dtypes_of_their_inputs(self, backend: str) -> None:
        case = {name: tensor.bfloat16() for name, tensor in make_case().items()}
        case |= {name: case[name].float() for name in OF_WEIGHTS}
        leaves = {name: tensor.requires_grad_() for name, tensor in case.items()}
        y, last = run(leaves, backend)
        gradients = torch.autograd.grad(y.float().sum() + last.float().sum(), list(leaves.values()))
        assert [g.dtype for g in gradients] == [t.dtype for t in leaves.values()]

    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    def test_autocast_does_not_reach_the_scan(self, backend: str) -> None:
        case = make_case(length=40, dtype=torch.float32)
        expected = run(case, backend)
        with torch.autocast("cpu", torch.bfloat16):
            assert all(torch.equal(a, b) for a, b in zip(run(case, backend), expected, strict=True))

    @pytest.mark.parametrize("dtype", HALF, ids=str)
    def test_a_step_keeps_the_state_as_precise_as_it_comes(self, dtype: torch.dtype) -> None:
        arguments = {name: tensor.to(dtype) for name, tensor in one_step(make_case()).items()}
        arguments["state"] = arguments["state"].float()
        y, state = selective_step(**arguments, delta_softplus=True)
        exact = selective_step(**{name: t.double() for name, t in arguments.items()}, delta_softplus=True)
        assert y.dtype == dtype and state.dtype == torch.float32
        torch.testing.assert_close(state.double(), exact[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(y.double(), exact[0], rtol=torch.finfo(dtype).eps, atol=1e-5)
