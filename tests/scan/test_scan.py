from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dmm.errors import InputError
from dmm.scan import PARALLEL_BLOCK, official, parallel_scan, scan_backends, selective_scan, selective_step
from tests.peers import mambapy_scan, official_kernel_signature, official_scan

BACKENDS = [name for name in scan_backends() if name in ("sequential", "parallel", "cpp")]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
OPTIONAL = ("D", "z", "delta_bias", "initial_state")
Case = dict[str, Tensor]


def make_case(
    b: int = 2, length: int = 7, e: int = 3, n: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Case:
    """All tensor arguments of `selective_scan`; `delta` is of either sign, since it goes through softplus."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    tokens = {name: normal(b, length, e) for name in ("u", "delta", "z")}
    matrices = {"A": -normal(e, n).exp(), "B": normal(b, length, n), "C": normal(b, length, n)}
    return tokens | matrices | {"D": normal(e), "delta_bias": normal(e), "initial_state": normal(b, e, n)}


def without(case: Case, *names: str) -> Case:
    return {name: tensor for name, tensor in case.items() if name not in names}


def run(case: Case, backend: str = "auto", softplus: bool = True) -> tuple[Tensor, Tensor]:
    y, last = selective_scan(**case, delta_softplus=softplus, return_last_state=True, backend=backend)
    return y, last


def naive(case: Case, softplus: bool = True) -> tuple[Tensor, Tensor]:
    """The definition, one number at a time in `b`, `e` and `t`."""
    u, delta, A, B, C = (case[name] for name in ("u", "delta", "A", "B", "C"))
    b, length, e = u.shape
    rows, states = [], []
    for i in range(b):
        for c in range(e):
            h = case["initial_state"][i, c] if "initial_state" in case else torch.zeros_like(A[c])
            for t in range(length):
                step = delta[i, t, c] + (case["delta_bias"][c] if "delta_bias" in case else 0.0)
                step = torch.log1p(torch.exp(step)) if softplus else step
                h = torch.exp(step * A[c]) * h + step * B[i, t] * u[i, t, c]
                y = (C[i, t] * h).sum() + (case["D"][c] * u[i, t, c] if "D" in case else 0.0)
                gate = case["z"][i, t, c] * torch.sigmoid(case["z"][i, t, c]) if "z" in case else 1.0
                rows.append(y * gate)
            states.append(h)
    return torch.stack(rows).view(b, e, length).mT, torch.stack(states).view(b, e, -1)


def outputs_and_gradients(function: Callable[[Case], tuple[Tensor, ...]], case: Case) -> dict[str, Tensor]:
    """Every output, and the gradient of a fixed random projection of them with respect to every input."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in case.items()}
    outputs = function(leaves)
    weights = [torch.randn(o.shape, generator=torch.Generator().manual_seed(9)).to(o) for o in outputs]
    loss = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    return named | {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}


def assert_same(ours: dict[str, Tensor], other: dict[str, Tensor], dtype: torch.dtype, factor: float = 1.0) -> None:
    assert ours.keys() == other.keys()
    tolerance = factor * TOLERANCE[dtype]
    for name, expected in other.items():
        torch.testing.assert_close(
            ours[name], expected, rtol=tolerance, atol=tolerance * max(1.0, expected.abs().max().item()), msg=name
        )


class TestDefinition:
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("softplus", [True, False])
    @pytest.mark.parametrize(
        "absent", [(), *((name,) for name in OPTIONAL), OPTIONAL], ids=lambda names: "-".join(names)
    )
    def test_equals_a_naive_loop(
        self, backend: str, dtype: torch.dtype, softplus: bool, absent: tuple[str, ...]
    ) -> None:
        case = without(make_case(length=5, dtype=dtype), *absent)
        if not softplus:
            case["delta"] = case["delta"].abs()
            case |= {"delta_bias": case["delta_bias"].abs()} if "delta_bias" in case else {}
        ours = outputs_and_gradients(lambda case: run(case, backend, softplus), case)
        assert_same(ours, outputs_and_gradients(lambda case: naive(case, softplus), case), dtype)

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize(
        "sizes",
        [
            {"length": 1},
            {"n": 1},
            {"e": 1},
            {"b": 1},
            {"b": 1, "length": 1, "e": 1, "n": 1},
            {"b": 1, "length": 24, "e": 5, "n": 3},
        ],
        ids=str,
    )
    def test_odd_sizes_equal_a_naive_loop(self, backend: str, sizes: dict[str, int]) -> None:
        case = make_case(**sizes)
        ours = outputs_and_gradients(lambda case: run(case, backend), case)
        assert_same(ours, outputs_and_gradients(naive, case), torch.float64)

    @pytest.mark.parametrize("length", [63, 64, 65, 128, 130])
    def test_backends_agree_around_the_blocks_of_tokens(self, length: int) -> None:
        assert PARALLEL_BLOCK == 64
        case = make_case(b=1, length=length, e=2, n=3)
        first, *others = (outputs_and_gradients(lambda case, name=name: run(case, name), case) for name in BACKENDS)
        for other in others:
            assert_same(other, first, torch.float64, 10)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_long_sequence_equals_a_loop_over_its_tokens(self, backend: str) -> None:
        case = make_case(b=1, length=130, e=2, n=3)
        ours = outputs_and_gradients(lambda case: run(case, backend), case)
        assert_same(ours, outputs_and_gradients(step_by_step, case), torch.float64, 10)

    @given(
        b=st.integers(1, 3),
        length=st.integers(1, 12),
        e=st.integers(1, 4),
        n=st.integers(1, 5),
        absent=st.sets(st.sampled_from(OPTIONAL)),
        seed=st.integers(0, 1000),
    )
    def test_backends_agree_on_random_shapes(self, absent: set[str], **shape: int) -> None:
        case = without(make_case(**shape), *absent)
        results = [outputs_and_gradients(lambda case, name=name: run(case, name), case) for name in BACKENDS]
        for result in results[1:]:
            assert_same(result, results[0], torch.float64)
        assert_same(results[0], outputs_and_gradients(step_by_step, case), torch.float64)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_gradients_equal_finite_differences(self, backend: str) -> None:
        case = {name: tensor.requires_grad_() for name, tensor in make_case(b=2, length=4, e=2, n=2).items()}
        names, tensors = tuple(case), tuple(case.values())
        assert torch.autograd.gradcheck(lambda *values: run(dict(zip(names, values, strict=True)), backend), tensors)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_gradient_reaches_single_inputs(self, backend: str) -> None:
        case = make_case()
        everything = outputs_and_gradients(lambda case: run(case, backend), case)
        for name in case:
            only = outputs_and_gradients(lambda one, name=name: run(case | one, backend), {name: case[name]})
            torch.testing.assert_close(only[f"gradient of {name}"], everything[f"gradient of {name}"])

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_inputs_are_left_as_they_were(self, backend: str) -> None:
        case = make_case()
        before = {name: tensor.clone() for name, tensor in case.items()}
        outputs_and_gradients(lambda leaves: run(leaves, backend), case)
        run(case, backend)
        assert all(torch.equal(case[name], before[name]) for name in case)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_gradients_of_the_outputs_are_left_as_they_were(self, backend: str) -> None:
        case = {name: tensor.requires_grad_() for name, tensor in make_case().items()}
        outputs = run(case, backend)
        given = [torch.ones_like(output) for output in outputs]
        torch.autograd.grad(outputs, list(case.values()), grad_outputs=given)
        assert all(bool((gradient == 1).all()) for gradient in given)

    def test_writing_into_the_last_state_does_not_reach_the_gradient(self) -> None:
        # the parallel backend returns a view, where torch itself refuses
        case = {name: tensor.requires_grad_() for name, tensor in make_case().items()}
        expected = torch.autograd.grad(run(case, "sequential")[0].sum(), list(case.values()))
        y, last = run(case, "sequential")
        with torch.no_grad():
            last.zero_()
        for gradient, other in zip(torch.autograd.grad(y.sum(), list(case.values())), expected, strict=True):
            torch.testing.assert_close(gradient, other)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_without_the_last_state_only_y_comes_back(self, backend: str) -> None:
        case = make_case()
        y = selective_scan(**case, delta_softplus=True, backend=backend)
        assert isinstance(y, Tensor) and torch.equal(y, run(case, backend)[0])


class TestPeers:
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
    @pytest.mark.parametrize("softplus", [True, False])
    def test_equals_mamba_ssm(self, backend: str, absent: tuple[str, ...], softplus: bool) -> None:
        case = without(make_case(length=70, dtype=torch.float32), "initial_state", *absent)
        if not softplus:
            case |= {name: case[name].abs() for name in ("delta", "delta_bias") if name in case}
        ours = outputs_and_gradients(lambda case: run(case, backend, softplus), case)
        theirs = outputs_and_gradients(lambda case: official_scan(**case, delta_softplus=softplus), case)
        assert_same(ours, theirs, torch.float32, 5)

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("length", [1, 5, 70])
    def test_equals_mambapy(self, backend: str, dtype: torch.dtype, length: int) -> None:
        case = without(make_case(length=length, dtype=dtype), "initial_state", "z", "delta_bias")
        case["delta"] = F.softplus(case["delta"])
        ours = outputs_and_gradients(lambda case: run(case, backend, softplus=False)[:1], case)
        assert_same(ours, outputs_and_gradients(lambda case: (mambapy_scan(**case),), case), dtype, 5)


class TestLayoutAndRange:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_non_contiguous_inputs(self, backend: str) -> None:
        case = make_case()
        scattered = {
            name: tensor.repeat_interleave(2, dim=-1)[..., ::2].mT.contiguous().mT
            for name, tensor in case.items()
            if tensor.ndim > 1
        }
        scattered |= {name: tensor.repeat_interleave(2)[::2] for name, tensor in case.items() if tensor.ndim == 1}
        assert not any(tensor.is_contiguous() for tensor in scattered.values())
        ours = scattered_gradients(scattered, backend)
        assert_same(ours, outputs_and_gradients(lambda case: run(case, backend), case), torch.float64)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_expanded_inputs(self, backend: str) -> None:
        case = make_case(b=3)
        case["z"] = case["z"][:1, :1, :1].expand_as(case["z"])
        case["B"] = case["B"][:1].expand_as(case["B"])
        dense = {name: tensor.contiguous() for name, tensor in case.items()}
        assert_same(scattered_gradients(case, backend), scattered_gradients(dense, backend), torch.float64)

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("delta", [0.0, 1e-8, 50.0])
    def test_extreme_step_sizes_stay_finite_and_equal_a_naive_loop(self, backend: str, delta: float) -> None:
        case = without(make_case(length=6), "delta_bias")
        case["delta"] = torch.full_like(case["delta"], delta)
        ours = outputs_and_gradients(lambda case: run(case, backend, softplus=False), case)
        assert all(bool(tensor.isfinite().all()) for tensor in ours.values())
        assert_same(ours, outputs_and_gradients(lambda case: naive(case, softplus=False), case), torch.float64)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_step_size_zero_keeps_the_state(self, backend: str) -> None:
        case = without(make_case(), "delta_bias")
        case["delta"] = torch.zeros_like(case["delta"])
        _, last = run(case, backend, softplus=False)
        assert torch.equal(last, case["initial_state"])

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_huge_step_size_forgets_the_past(self, backend: str) -> None:
        case = without(make_case(), "delta_bias")
        case["A"], case["delta"] = torch.full_like(case["A"], -1000.0), torch.ones_like(case["delta"])
        torch.testing.assert_close(
            run(case, backend, softplus=False)[0],
            run(case | {"initial_state": 100 * case["initial_state"]}, backend, softplus=False)[0],
        )

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_half_precision_comes_back_in_half_precision(self, backend: str) -> None:
        case = without(make_case(dtype=torch.bfloat16), "initial_state")
        y, last = run(case, backend)
        exact, _ = run({name: tensor.double() for name, tensor in case.items()}, backend)
        assert y.dtype == last.dtype == torch.bfloat16
        torch.testing.assert_close(y.double(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())


def scattered_gradients(case: Case, backend: str) -> dict[str, Tensor]:
    """As `outputs_and_gradients`, for inputs whose layout a copy would lose."""
    for tensor in case.values():
        tensor.requires_grad_()
    return outputs_and_gradients(
        lambda leaves: run({name: as_laid_out(leaves[name], case[name]) for name in case}, backend), case
    )


def as_laid_out(values: Tensor, like: Tensor) -> Tensor:
    """`values` with the strides of `like`, differentiably."""
    return _SameStrides.apply(values, like)


class _SameStrides(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, like: Tensor) -> Tensor:
        return like.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def step_by_step(case: Case, softplus: bool = True) -> tuple[Tensor, Tensor]:
    """`selective_scan` as a loop over `selective_step`."""
    state = case.get("initial_state", case["u"].new_zeros(len(case["u"]), *case["A"].shape))
    fixed = {name: case[name] for name in ("D", "delta_bias") if name in case}
    rows = []
    for t in range(case["u"].shape[1]):
        token = {name: case[name][:, t] for name in ("u", "delta", "B", "C", "z") if name in case}
        y, state = selective_step(state, A=case["A"], **token, **fixed, delta_softplus=softplus)
        rows.append(y)
    return torch.stack(rows, 1), state


class TestSteps:
    @pytest.mark.parametrize("absent", [(), *((name,) for name in OPTIONAL)])
    @pytest.mark.parametrize("softplus", [True, False])
    def test_a_loop_of_steps_equals_a_naive_loop(self, absent: tuple[str, ...], softplus: bool) -> None:
        case = without(make_case(), *absent)
        if not softplus:
            case |= {name: case[name].abs() for name in ("delta", "delta_bias") if name in case}
        ours = outputs_and_gradients(lambda case: step_by_step(case, softplus), case)
        assert_same(ours, outputs_and_gradients(lambda case: naive(case, softplus), case), torch.float64)

    def test_a_step_does_not_write_into_the_state(self) -> None:
        case = make_case()
        before = case["initial_state"].clone()
        step_by_step(case)
        assert torch.equal(case["initial_state"], before)

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("cut", [1, 64, 69])
    def test_two_parts_with_the_state_handed_over_equal_the_whole(self, backend: str, cut: int) -> None:
        case = make_case(length=70)
        along_time = ("u", "delta", "z", "B", "C")

        def in_parts(case: Case) -> tuple[Tensor, Tensor]:
            first, second = dict(case), dict(case)
            for name in along_time:
                first[name], second[name] = case[name][:, :cut], case[name][:, cut:]
            y, second["initial_state"] = run(first, backend)
            later, last = run(second, backend)
            return torch.cat([y, later], 1), last

        whole = outputs_and_gradients(lambda case: run(case, backend), case)
        assert_same(outputs_and_gradients(in_parts, case), whole, torch.float64, 10)


class TestParallelScan:
    @pytest.mark.parametrize("shape", [(2, 5), (1, 65, 3), (2, 7, 2, 3)])
    @pytest.mark.parametrize("started", [True, False])
    def test_equals_the_recurrence(self, shape: tuple[int, ...], started: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        a, x = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
        start = torch.randn(shape[0], *shape[2:], dtype=torch.float64, generator=generator) if started else None
        h, expected = torch.zeros_like(x[:, 0]) if start is None else start, []
        for t in range(shape[1]):
            h = a[:, t] * h + x[:, t]
            expected.append(h)
        torch.testing.assert_close(parallel_scan(a, x, start), torch.stack(expected, 1))

    def test_gradients_equal_finite_differences(self) -> None:
        a, x = (torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
        start = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(parallel_scan, (a, x, start))


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("u", (2, 7)),
            ("u", (2, 0, 3)),
            ("A", (4, 4)),
            ("A", (3,)),
            ("delta", (2, 7, 1)),
            ("delta", (1, 7, 3)),
            ("B", (2, 7, 5)),
            ("C", (2, 6, 4)),
            ("D", (1,)),
            ("z", (2, 7)),
            ("delta_bias", (3, 1)),
            ("initial_state", (2, 4, 3)),
        ],
    )
    def test_a_shape_that_does_not_fit_is_named(self, name: str, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=rf"^{name}: got shape \({shape[0]},.*allowed is") as caught:
            selective_scan(**(make_case() | {name: torch.zeros(shape, dtype=torch.float64)}))
        assert "\n" not in str(caught.value)

    def test_another_device_is_named(self) -> None:
        case = make_case()
        with pytest.raises(InputError, match=r"^A: got a tensor on meta, allowed is u's device, cpu"):
            selective_scan(**(case | {"A": case["A"].to("meta")}))

    @pytest.mark.parametrize("sizes", [{"e": 0}, {"n": 0}], ids=str)
    def test_nothing_to_scan_is_named(self, sizes: dict[str, int]) -> None:
        with pytest.raises(InputError, match=r"^A: got shape .* allowed is at least one channel and one state"):
            selective_scan(**make_case(**sizes))

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_an_empty_batch_stays_empty(self, backend: str) -> None:
        y, last = run(make_case(b=0), backend)
        assert y.shape == (0, 7, 3) and last.shape == (0, 3, 4)

    def test_unknown_backend_is_named_with_those_of_this_machine(self) -> None:
        with pytest.raises(InputError, match=r"^backend: got 'cuda', allowed here are auto, sequential, parallel"):
            selective_scan(**make_case(), backend="cuda")


class OnCuda(Tensor):
    """A tensor of the CPU that says it is on a GPU, so that the choice of a backend can be tested without one."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]


class FakeKernel:
    """mamba-ssm's reference in the place of its CUDA kernel, remembering what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any, return_last_state: bool = False) -> Any:
        self.calls.append(arguments)
        return official_kernel_signature(*arguments, return_last_state=return_last_state)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    fake = FakeKernel()
    monkeypatch.setattr(official, "mamba_ssm_kernel", lambda: fake)
    return fake


def on_cuda(case: Case) -> Case:
    return {name: tensor.as_subclass(OnCuda) for name, tensor in case.items()}


class TestMambaSsmBackend:
    def test_is_offered_only_with_its_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(official, "mamba_ssm_kernel", lambda: None)
        assert scan_backends() == BACKENDS
        monkeypatch.setattr(official, "mamba_ssm_kernel", FakeKernel)
        assert scan_backends() == [*BACKENDS, "mamba-ssm"]

    @pytest.mark.parametrize("backend", ["auto", "mamba-ssm"])
    @pytest.mark.parametrize("absent", [(), ("D", "z", "delta_bias")])
    def test_equals_the_sequential_backend(self, kernel: FakeKernel, backend: str, absent: tuple[str, ...]) -> None:
        case = without(make_case(dtype=torch.float32), "initial_state", *absent)
        y, last = run(on_cuda(case), backend)
        expected, expected_last = run(case, "sequential")
        assert len(kernel.calls) == 1
        torch.testing.assert_close(y.as_subclass(Tensor), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(last.as_subclass(Tensor), expected_last, rtol=1e-5, atol=1e-5)

    def test_gives_the_kernel_its_own_layout(self, kernel: FakeKernel) -> None:
        run(on_cuda(without(make_case(b=2, length=7, e=3, n=4, dtype=torch.float32), "initial_state")))
        u, delta, A, B, C, D, z, delta_bias, softplus = kernel.calls[0]
        shapes = [tuple(t.shape) for t in (u, delta, A, B, C, D, z, delta_bias)]
        assert shapes == [(2, 3, 7), (2, 3, 7), (3, 4), (2, 4, 7), (2, 4, 7), (3,), (2, 3, 7), (3,)]
        assert all(t.is_contiguous() and t.dtype == torch.float32 for t in (u, delta, A, B, C, D, z, delta_bias))
        assert softplus is True

    def test_gradients_pass_through_the_layout(self, kernel: FakeKernel) -> None:
        case = without(make_case(dtype=torch.float32), "initial_state")
        ours = outputs_and_gradients(lambda case: (selective_scan(**on_cuda(case), delta_softplus=True),), case)
        theirs = outputs_and_gradients(lambda case: run(case, "sequential")[:1], case)
        assert_same({name: t.as_subclass(Tensor) for name, t in ours.items()}, theirs, torch.float32)

    @pytest.mark.parametrize("reason", ["float64", "initial_state", "cpu"])
    def test_auto_falls_back_where_the_kernel_cannot_serve(self, kernel: FakeKernel, reason: str) -> None:
        case = make_case(dtype=torch.float64 if reason == "float64" else torch.float32)
        case = case if reason == "initial_state" else without(case, "initial_state")
        y, _ = run(case if reason == "cpu" else on_cuda(case))
        assert kernel.calls == []
        torch.testing.assert_close(y.as_subclass(Tensor), run(case, "sequential")[0], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("reason", ["float64", "initial_state", "cpu"])
    def test_asking_for_it_where_it_cannot_serve_is_refused(self, kernel: FakeKernel, reason: str) -> None:
        case = make_case(dtype=torch.float64 if reason == "float64" else torch.float32)
        case = case if reason == "initial_state" else without(case, "initial_state")
        with pytest.raises(
            InputError,
            match=r"^backend: got 'mamba-ssm' .* allowed are CUDA tensors below float64, A \(e, n\)",
        ):
            run(case if reason == "cpu" else on_cuda(case), "mamba-ssm")

    def test_half_precision_goes_to_the_kernel(self, kernel: FakeKernel) -> None:
        case = without(make_case(dtype=torch.float32), "initial_state")
        half = {name: case[name].bfloat16() for name in ("u", "delta", "B", "C", "z")}
        y, _ = run(on_cuda(case | half))
        assert len(kernel.calls) == 1 and y.dtype == torch.bfloat16

    @pytest.mark.parametrize("name", ["B", "D"])
    def test_a_mixture_of_dtypes_that_it_does_not_take_is_left_to_others(self, kernel: FakeKernel, name: str) -> None:
        case = without(make_case(dtype=torch.float32), "initial_state")
        y, _ = run(on_cuda(case | {name: case[name].bfloat16()}))
        assert kernel.calls == [] and y.dtype == torch.float32

    def test_gradients_of_gradients_are_refused(self, kernel: FakeKernel) -> None:
        case = {
            name: t.requires_grad_() for name, t in without(make_case(dtype=torch.float32), "initial_state").items()
        }
        y = selective_scan(**on_cuda(case), backend="mamba-ssm")
        assert isinstance(y, Tensor)
        with pytest.raises(InputError, match=r"^backend: got 'mamba-ssm' with create_graph=True, allowed is parallel"):
            torch.autograd.grad(y.sum(), case["C"], create_graph=True)

    def test_gradient_of_the_last_state_is_not_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # mamba-ssm: "the gradient of the last state is not considered in the backward pass"
        def kernel(*arguments: Any, return_last_state: bool) -> tuple[Tensor, Tensor]:
            y, last = official_kernel_signature(*arguments, return_last_state=return_last_state)
            return y, last.detach()

        monkeypatch.setattr(official, "mamba_ssm_kernel", lambda: kernel)
        case = without(make_case(dtype=torch.float32), "initial_state")
        ours = outputs_and_gradients(lambda case: run(on_cuda(case)), case)
        theirs = outputs_and_gradients(lambda case: run(case, "sequential"), case)
        assert_same({name: t.as_subclass(Tensor) for name, t in ours.items()}, theirs, torch.float32)
