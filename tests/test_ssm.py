from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal
from scipy.linalg import expm
from torch import Tensor

from dmm.errors import InputError
from dmm.ssm import (
    convolution_kernel,
    convolve,
    discretize,
    hippo_legs,
    random_diagonal,
    recurrence,
    s4d_real,
)

METHODS = ["zoh", "bilinear", "euler"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stable_matrix(n: int, seed: int = 0) -> Tensor:
    return normal(n, n, seed=seed) - 3 * torch.eye(n, dtype=torch.float64)


def scipy_discretize(A: Tensor, B: Tensor, delta: float, method: str) -> tuple[np.ndarray, np.ndarray]:
    n, m = A.shape[0], B.shape[1]
    system = (A.numpy(), B.numpy(), np.eye(n), np.zeros((n, m)))
    A_bar, B_bar, *_ = signal.cont2discrete(system, delta, method=method)
    return A_bar, B_bar


def assert_close(ours: Tensor, other: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, torch.as_tensor(other, dtype=ours.dtype), rtol=tolerance, atol=tolerance)


class TestDiscretize:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("m", [1, 3])
    @pytest.mark.parametrize("delta", [1e-3, 0.1, 0.7])
    def test_dense_equals_scipy(self, method: Any, m: int, delta: float) -> None:
        A, B = stable_matrix(4), normal(4, m, seed=1)
        A_bar, B_bar = discretize(A, B, delta, method)
        expected_A, expected_B = scipy_discretize(A, B, delta, method)
        assert_close(A_bar, expected_A)
        assert_close(B_bar, expected_B)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("m", [1, 3])
    def test_diagonal_equals_scipy(self, method: Any, m: int) -> None:
        A, B = -torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64), normal(3, m)
        A_bar, B_bar = discretize(A, B, 0.2, method)
        expected_A, expected_B = scipy_discretize(torch.diag(A), B, 0.2, method)
        assert_close(torch.diag(A_bar), expected_A)
        assert_close(B_bar, expected_B)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("columns", [(), (2,)])
    @pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
    def test_diagonal_equals_dense_for_batches_of_step_sizes(
        self, method: Any, columns: tuple[int, ...], batch: tuple[int, ...]
    ) -> None:
        A, B, delta = -normal(4).abs(), normal(4, *columns, seed=1), 0.05 + normal(*batch, seed=2).abs()
        A_bar, B_bar = discretize(A, B, delta, method)
        dense_A, dense_B = discretize(torch.diag(A), B, delta, method)
        assert A_bar.shape == (*batch, 4) and dense_A.shape == (*batch, 4, 4) and B_bar.shape == (*batch, 4, *columns)
        assert_close(torch.diag_embed(A_bar), dense_A)
        assert_close(B_bar, dense_B)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_batch_of_step_sizes_is_each_of_them_by_itself(self, method: Any) -> None:
        A, B, delta = stable_matrix(3), normal(3), torch.tensor([0.01, 0.4], dtype=torch.float64)
        A_bar, B_bar = discretize(A, B, delta, method)
        for i, step in enumerate(delta.tolist()):
            one_A, one_B = discretize(A, B, step, method)
            assert_close(A_bar[i], one_A)
            assert_close(B_bar[i], one_B)

    def test_zoh_takes_a_singular_dense_matrix(self) -> None:
        # a double integrator: position' = speed, speed' = u
        A, B = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double(), torch.tensor([0.0, 1.0]).double()
        A_bar, B_bar = discretize(A, B, 0.5, "zoh")
        assert_close(A_bar, [[1.0, 0.5], [0.0, 1.0]])
        assert_close(B_bar, [0.125, 0.5])

    def test_zoh_takes_a_zero_on_the_diagonal(self) -> None:
        A_bar, B_bar = discretize(torch.tensor([0.0, -1.0]).double(), torch.ones(2).double(), 0.5, "zoh")
        assert_close(A_bar, [1.0, np.exp(-0.5)])
        assert_close(B_bar, [0.5, 1 - np.exp(-0.5)])

    def test_zoh_has_a_finite_gradient_at_a_zero_on_the_diagonal(self) -> None:
        A = torch.tensor([0.0, -1.0], dtype=torch.float64, requires_grad=True)
        A_bar, B_bar = discretize(A, torch.ones(2).double(), 0.5, "zoh")
        (A_bar.sum() + B_bar.sum()).backward()
        assert A.grad is not None and bool(A.grad.isfinite().all())

    def test_zoh_keeps_its_digits_for_tiny_step_sizes(self) -> None:
        _, B_bar = discretize(torch.tensor([-1.0]), torch.ones(1), 1e-8)
        assert B_bar.item() == pytest.approx(1e-8, rel=1e-6)

    def test_zoh_is_the_exact_solution_for_constant_input(self) -> None:
        # h' = A h + B u with u = 1.5 from h(0): h(t) = exp(At) h(0) + A^-1 (exp(At) - 1) B u, at t = 10 steps of 0.3
        A, B, start, u = stable_matrix(3), normal(3, seed=1), normal(3, seed=2), 1.5
        A_bar, B_bar = discretize(A, B, 0.3, "zoh")
        _, states = recurrence(A_bar, B_bar, torch.ones(3).double(), torch.full((10,), u).double(), initial_state=start)
        flow = expm(3.0 * A.numpy())
        exact = flow @ start.numpy() + np.linalg.solve(A.numpy(), (flow - np.eye(3)) @ B.numpy()) * u
        assert_close(states[-1], exact, 1e-11)

    @pytest.mark.parametrize(("method", "order"), [("euler", 1), ("bilinear", 2)])
    def test_error_of_one_second_shrinks_with_the_order_of_the_method(self, method: Any, order: int) -> None:
        A = torch.tensor([-1.0], dtype=torch.float64)
        errors = [abs(discretize(A, A, 1 / k, method)[0].item() ** k - np.exp(-1)) for k in (100, 200)]
        assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.02)

    def test_zoh_is_the_default(self) -> None:
        A, B = stable_matrix(2), normal(2)
        assert_close(discretize(A, B, 0.1)[1], discretize(A, B, 0.1, "zoh")[1], 0)

    @pytest.mark.parametrize(
        ("name", "A", "B", "delta", "method"),
        [
            ("method", -torch.ones(2), torch.ones(2), 0.1, "tustin"),
            ("A", torch.tensor(-1.0), torch.ones(1), 0.1, "zoh"),
            ("A", -torch.ones(2, 3), torch.ones(2), 0.1, "zoh"),
            ("A", -torch.ones(2, 2, 2), torch.ones(2), 0.1, "zoh"),
            ("A", -torch.ones(0), torch.ones(0), 0.1, "zoh"),
            ("B", -torch.ones(2), torch.ones(3), 0.1, "zoh"),
            ("B", -torch.ones(2), torch.ones(2, 1, 1), 0.1, "zoh"),
            ("delta", -torch.ones(2), torch.ones(2), 0.0, "zoh"),
            ("delta", -torch.ones(2), torch.ones(2), torch.tensor([0.1, -0.1]), "euler"),
            ("delta", -torch.ones(2), torch.ones(2), float("nan"), "bilinear"),
        ],
    )
    def test_wrong_input_is_named(self, name: str, A: Tensor, B: Tensor, delta: Any, method: Any) -> None:
        with pytest.raises(InputError, match=f"^{name}: got .*, allowed"):
            discretize(A, B, delta, method)


def system(dense: bool, n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    A = stable_matrix(n) if dense else -1 - normal(n).abs()
    return (*discretize(A, normal(n, seed=1), 0.1), normal(n, seed=2))


class TestRecurrence:
    @pytest.mark.parametrize("dense", [True, False])
    def test_two_steps_by_hand(self, dense: bool) -> None:
        a, b, c = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 0.25], [1.0, 2.0], [3.0, -1.0]))
        y, states = recurrence(torch.diag(a) if dense else a, b, c, torch.tensor([1.0, 2.0]).double(), D=10.0)
        assert_close(states, [[1.0, 2.0], [2.5, 4.5]])
        assert_close(y, [3 * 1 - 2 + 10, 3 * 2.5 - 4.5 + 20])

    def test_equals_scipys_simulation(self) -> None:
        # scipy reads its output off the state before the step, hence C A_bar and C B_bar + D
        (A_bar, B_bar, C), u, D = system(dense=True), normal(20, seed=3), 0.3
        output = ((C @ A_bar)[None].numpy(), (C @ B_bar + D).reshape(1, 1).numpy())
        _, expected, _ = signal.dlsim((A_bar.numpy(), B_bar[:, None].numpy(), *output, 1.0), u.numpy())
        assert_close(recurrence(A_bar, B_bar, C, u, D)[0], expected[:, 0])

    @pytest.mark.parametrize("dense", [True, False])
    def test_equals_the_convolution_with_its_kernel(self, dense: bool) -> None:
        (A_bar, B_bar, C), u = system(dense), normal(37, seed=3)
        y, _ = recurrence(A_bar, B_bar, C, u)
        assert_close(convolve(convolution_kernel(A_bar, B_bar, C, 37), u), y)

    @pytest.mark.parametrize("dense", [True, False])
    def test_initial_state_and_skip_add_to_the_convolution(self, dense: bool) -> None:
        (A_bar, B_bar, C), u, start = system(dense), normal(12, seed=3), normal(4, seed=4)
        y, _ = recurrence(A_bar, B_bar, C, u, D=-0.7, initial_state=start)
        matrix = A_bar if dense else torch.diag(A_bar)
        decay = torch.stack([C @ torch.linalg.matrix_power(matrix, t + 1) @ start for t in range(12)])
        assert_close(convolve(convolution_kernel(A_bar, B_bar, C, 12), u) - 0.7 * u + decay, y)

    def test_goes_on_from_its_last_state(self) -> None:
        (A_bar, B_bar, C), u = system(dense=True), normal(10, seed=3)
        y, states = recurrence(A_bar, B_bar, C, u)
        later, _ = recurrence(A_bar, B_bar, C, u[6:], initial_state=states[5])
        assert_close(later, y[6:])

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("u", {"u": torch.ones(0)}),
            ("u", {"u": torch.ones(3, 1)}),
            ("B_bar, C", {"B_bar": torch.ones(3)}),
            ("B_bar, C", {"C": torch.ones(2, 1)}),
        ],
    )
    def test_wrong_input_is_named(self, name: str, changes: dict[str, Tensor]) -> None:
        arguments = {"A_bar": torch.ones(2), "B_bar": torch.ones(2), "C": torch.ones(2), "u": torch.ones(3)}
        with pytest.raises(InputError, match=f"^{name}: got .*allowed"):
            recurrence(**(arguments | changes))

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("A_bar", {"A_bar": torch.ones(3, 2)}),
            ("A_bar", {"A_bar": torch.ones(5, 2, 2)}),
            ("initial_state", {"initial_state": torch.ones(1)}),
            ("initial_state", {"initial_state": torch.ones(2, 2)}),
        ],
    )
    def test_shapes_that_would_broadcast_are_refused(self, name: str, changes: dict[str, Tensor]) -> None:
        arguments = {"A_bar": torch.ones(2), "B_bar": torch.ones(2), "C": torch.ones(2), "u": torch.ones(3)}
        with pytest.raises(InputError, match=f"^{name}: got .*allowed"):
            recurrence(**(arguments | changes))


class TestConvolution:
    @pytest.mark.parametrize("dense", [True, False])
    def test_kernel_is_the_impulse_response(self, dense: bool) -> None:
        A_bar, B_bar, C = system(dense)
        impulse = torch.zeros(9).double()
        impulse[0] = 1
        assert_close(convolution_kernel(A_bar, B_bar, C, 9), recurrence(A_bar, B_bar, C, impulse)[0])

    def test_kernel_of_a_negative_diagonal_alternates(self) -> None:
        kernel = convolution_kernel(torch.tensor([-0.5]), torch.ones(1), torch.ones(1), 4)
        assert_close(kernel, [1.0, -0.5, 0.25, -0.125])

    @given(length=st.integers(1, 70), seed=st.integers(0, 10_000))
    def test_fft_equals_the_sum(self, length: int, seed: int) -> None:
        kernel, u = normal(length, seed=seed), normal(length, seed=seed + 1)
        assert_close(convolve(kernel, u), np.convolve(kernel.numpy(), u.numpy())[:length], 1e-11)

    def test_does_not_wrap_around(self) -> None:
        kernel, u = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 3.0])
        assert_close(convolve(kernel, u), [0.0, 0.0, 1.0], 1e-6)

    def test_wrong_length_is_named(self) -> None:
        with pytest.raises(InputError, match=r"^length: got 0, allowed is a whole number of at least 1"):
            convolution_kernel(torch.ones(2), torch.ones(2), torch.ones(2), 0)

    def test_kernel_of_another_length_than_the_signal_is_named(self) -> None:
        with pytest.raises(InputError, match=r"^kernel: got shape \(3,\), allowed is that of u, \(4,\)"):
            convolve(torch.ones(3), torch.ones(4))


class TestInitialisations:
    def test_s4d_real_counts_down(self) -> None:
        assert s4d_real(4).tolist() == [-1, -2, -3, -4]
        assert s4d_real(4).dtype == torch.float32 and s4d_real(4, torch.float64).dtype == torch.float64

    def test_hippo_legs_of_three_by_hand(self) -> None:
        A, B = hippo_legs(3, torch.float64)
        r3, r5, r15 = np.sqrt([3.0, 5.0, 15.0])
        assert_close(A, [[-1, 0, 0], [-r3, -2, 0], [-r5, -r15, -3]])
        assert_close(B, [1, r3, r5])

    @pytest.mark.parametrize("n", [1, 2, 8])
    def test_eigenvalues_of_hippo_legs_are_those_of_s4d_real(self, n: int) -> None:
        eigenvalues = torch.linalg.eigvals(hippo_legs(n, torch.float64)[0]).real
        assert_close(eigenvalues.sort(descending=True).values, s4d_real(n), 1e-8)

    def test_random_diagonal_fills_minus_two_to_minus_one(self) -> None:
        A = random_diagonal(5000, torch.Generator().manual_seed(0))
        assert bool((A <= -1).all()) and bool((A >= -2).all())
        quartiles = torch.quantile(A, torch.tensor([0.25, 0.5, 0.75]))
        assert_close(quartiles, [-1.75, -1.5, -1.25], 0.02)

    def test_random_diagonal_follows_its_generator(self) -> None:
        first, again, other = (random_diagonal(8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_random_diagonal_without_generator_follows_the_global_seed(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            first = random_diagonal(4)
            torch.manual_seed(3)
            assert torch.equal(first, random_diagonal(4))


class TestDtypes:
    CALLS: tuple[tuple[Any, dict[str, Tensor]], ...] = (
        (discretize, {"A": -normal(3).exp(), "B": normal(3), "delta": torch.tensor(0.1)}),
        (recurrence, {"A_bar": normal(3), "B_bar": normal(3), "C": normal(3), "u": normal(4)}),
        (convolution_kernel, {"A_bar": normal(3), "B_bar": normal(3), "C": normal(3)}),
        (convolve, {"kernel": normal(4), "u": normal(4)}),
    )

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool, torch.float16], ids=str)
    @pytest.mark.parametrize(
        ("function", "name"), [(f, name) for f, arguments in CALLS for name in arguments if name != "delta"]
    )
    def test_what_is_not_of_full_precision_and_real_is_named(
        self, function: Any, name: str, dtype: torch.dtype
    ) -> None:
        arguments = dict(next(arguments for f, arguments in self.CALLS if f is function))
        arguments[name] = arguments[name].to(dtype)
        more = {"length": 4} if function is convolution_kernel else {}
        with pytest.raises(InputError, match=rf"^{name}: got dtype {dtype}, allowed are real numbers: float32 and"):
            function(**arguments, **more)

    @pytest.mark.parametrize("delta", [1j, torch.tensor(1j), np.array([1j])], ids=["number", "tensor", "array"])
    def test_complex_step_sizes_are_refused(self, delta: Any) -> None:
        with pytest.raises(InputError, match=r"^delta: got complex numbers, allowed are positive step sizes"):
            discretize(-normal(3).exp(), normal(3), delta)

    @pytest.mark.parametrize("dense", [False, True])
    @pytest.mark.parametrize("method", METHODS)
    def test_single_beside_double_is_computed_in_double(self, method: Any, dense: bool) -> None:
        A, B = (-normal(3).exp().diag() if dense else -normal(3).exp()), normal(3).float()
        for ours, other in zip(discretize(A, B, 0.1, method), discretize(A, B.double(), 0.1, method), strict=True):
            assert ours.dtype == torch.float64 and torch.equal(ours, other)

    def test_so_is_a_recurrence(self) -> None:
        A_bar, B_bar, C, u = (normal(size, seed=i) for i, size in enumerate((3, 3, 3, 5)))
        ours = recurrence(A_bar.float(), B_bar, C, u)
        assert torch.equal(ours[0], recurrence(A_bar.float().double(), B_bar, C, u)[0])
