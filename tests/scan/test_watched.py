"""Gradients of gradients, and everything by which torch follows a computation other than `backward`."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from dmm.errors import InputError
from dmm.scan import parallel_scan, selective_scan
from tests.scan.test_scan import BACKENDS, OPTIONAL, Case, make_case, run, without

PLAIN = ("sequential", "parallel", "auto")
KERNELS = [name for name in BACKENDS if name not in PLAIN]
CASE = make_case()


def energy(u: Tensor, backend: str = "auto", case: Case | None = None) -> Tensor:
    """One number of a scan of `u`, from which the step sizes are computed as well."""
    case = CASE if case is None else case
    y = selective_scan(**(case | {"u": u, "delta": u.sin()}), delta_softplus=True, backend=backend)
    assert isinstance(y, Tensor)
    return y.square().sum()


def direction() -> Tensor:
    return make_case(seed=1)["u"]


class TestGradientsOfGradients:
    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    @pytest.mark.parametrize("absent", [(), OPTIONAL], ids=["all", "none of the optional"])
    def test_equal_finite_differences(self, backend: str, absent: tuple[str, ...]) -> None:
        case = without(make_case(b=2, length=3, e=2, n=2), *absent)
        leaves = {name: tensor.requires_grad_() for name, tensor in case.items()}
        assert torch.autograd.gradgradcheck(
            lambda *values: run(dict(zip(leaves, values, strict=True)), backend), tuple(leaves.values())
        )

    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    def test_where_one_input_comes_from_another(self, backend: str) -> None:
        case = make_case(b=1, length=3, e=2, n=2)
        assert torch.autograd.gradgradcheck(lambda u: energy(u, backend, case), (case["u"].requires_grad_(),))

    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    def test_of_several_systems(self, backend: str) -> None:
        case = make_case(b=4, length=3, e=2, n=2)
        case |= {name: torch.stack([case[name], 2 * case[name]]) for name in ("A", "D", "delta_bias")}
        A = case.pop("A").requires_grad_()
        assert torch.autograd.gradgradcheck(lambda A: run(case | {"A": A}, backend), (A,))

    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    def test_the_first_gradient_is_the_same_either_way(self, backend: str) -> None:
        case = {name: tensor.requires_grad_() for name, tensor in make_case().items()}
        once = torch.autograd.grad(run(case, backend)[0].square().sum(), list(case.values()))
        again = torch.autograd.grad(run(case, backend)[0].square().sum(), list(case.values()), create_graph=True)
        for ours, other in zip(again, once, strict=True):
            torch.testing.assert_close(ours, other)

    @pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
    def test_and_third_ones(self, backend: str) -> None:
        u = make_case(b=1, length=2, e=1, n=2)["u"].requires_grad_()
        case = make_case(b=1, length=2, e=1, n=2)
        (first,) = torch.autograd.grad(energy(u, backend, case), u, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), u, create_graph=True)
        (third,) = torch.autograd.grad(second.sum(), u)
        step = 1e-4 * torch.ones_like(u)
        sums = [
            torch.autograd.functional.hessian(lambda u: energy(u, "parallel", case), u + s).sum((0, 1, 2))
            for s in (-step, step)
        ]
        torch.testing.assert_close(third, (sums[1] - sums[0]) / 2e-4, rtol=1e-5, atol=1e-5)

    def test_of_the_recurrence_alone(self) -> None:
        generator = torch.Generator().manual_seed(0)
        a, x, start = (
            torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()
            for shape in ((1, 5, 2), (1, 5, 2), (1, 2))
        )
        assert torch.autograd.gradgradcheck(parallel_scan, (a, x, start))


class TestTransforms:
    @pytest.mark.parametrize("backend", PLAIN)
    def test_gradient_jacobian_and_hessian(self, backend: str) -> None:
        u = make_case(b=1, length=3)["u"]
        case = make_case(b=1, length=3)

        def loss(u: Tensor) -> Tensor:
            return energy(u, backend, case)

        torch.testing.assert_close(torch.func.grad(loss)(u), torch.autograd.functional.jacobian(loss, u))
        torch.testing.assert_close(torch.func.jacrev(loss)(u), torch.func.jacfwd(loss)(u))
        torch.testing.assert_close(torch.func.hessian(loss)(u), torch.autograd.functional.hessian(loss, u))

    @pytest.mark.parametrize("backend", PLAIN)
    def test_forward_mode(self, backend: str) -> None:
        u = make_case()["u"]
        expected = (torch.autograd.functional.jacobian(lambda u: energy(u, backend), u) * direction()).sum()
        _, tangent = torch.func.jvp(lambda u: energy(u, backend), (u,), (direction(),))
        torch.testing.assert_close(tangent, expected)
        with forward_ad.dual_level(), torch.no_grad():
            dual = energy(forward_ad.make_dual(u, direction()), backend)
            torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)

    @pytest.mark.parametrize("backend", PLAIN)
    @pytest.mark.parametrize("name", ["u", "A", "initial_state"])
    def test_vmap(self, backend: str, name: str) -> None:
        case = make_case()
        several = torch.stack([case[name], 0.5 * case[name]])
        y, last = torch.vmap(lambda value: run(case | {name: value}, backend))(several)
        for i in range(2):
            expected = run(case | {name: several[i]}, "sequential")
            torch.testing.assert_close((y[i], last[i]), expected)

    @pytest.mark.parametrize("backend", PLAIN)
    def test_recorded_operations_hold_for_other_inputs(self, backend: str) -> None:
        u = make_case()["u"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an old way, and that shapes of the example become constants
            traced = torch.jit.trace(lambda u: energy(u, backend), u, check_trace=False)
            for recorded in (traced, make_fx(lambda u: energy(u, backend))(u)):
                torch.testing.assert_close(recorded(direction()), energy(direction()))

    @pytest.mark.parametrize("backend", KERNELS)
    def test_a_kernel_asked_for_by_name_is_refused(self, backend: str) -> None:
        u = make_case()["u"]
        message = rf"^backend: got '{backend}' where torch watches .* allowed are auto, sequential, parallel$"
        for follow in (torch.func.grad, make_fx):
            with pytest.raises(InputError, match=message):
                follow(lambda u: energy(u, backend))(u)
        with pytest.raises(InputError, match=message):
            torch.vmap(lambda u: energy(u, backend))(u[None])
        with forward_ad.dual_level(), pytest.raises(InputError, match=message):
            energy(forward_ad.make_dual(u, direction()), backend)

    def test_outside_of_them_the_kernel_is_taken_again(self) -> None:
        case = make_case()
        name = "cpp" if "cpp" in BACKENDS else "sequential"
        torch.vmap(lambda u: run(case | {"u": u}))(case["u"][None])
        assert all(torch.equal(a, b) for a, b in zip(run(case), run(case, name), strict=True))
