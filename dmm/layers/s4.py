r"""S4 and S4D: linear state space models, one for each channel, trained by convolution and run as a recurrence.

    h_t = A_bar h_{t-1} + B_bar u_t,   y_t = C h_t + D u_t        or        y = K * u + D u,   K_l = C A_bar^l B_bar

| | A | from A, B and the step size dt to A_bar, B_bar |
|---|---|---|
| `S4` | `diag(lambda) - p p^*`, diagonal plus low rank, started as HiPPO-LegS | bilinear |
| `S4D` | `diag(lambda)`, started at `-1/2 + i pi n` | zero-order hold |

States are complex and come in conjugate pairs, of which one is kept: `n` real numbers are `n / 2` pairs, and a sum over
all states is twice the real part of the sum over those kept.

Source: Gu et al. 2022, arXiv 2111.00396 (S4) and Gu et al. 2022, arXiv 2206.11893 (S4D); state-spaces/s4@e757cef,
`models/s4/s4.py` and `models/s4/s4d.py`. Departures: `C` is the matrix of the equations, where that code holds
`C (I - A_bar^L)` from its first call at a length L on; the kernel comes from powers of the real matrix that acts on
`[Re h, Im h]`, about `2 sqrt(l)` products of it with vectors, not from Cauchy products, so it costs `n^2` in the state
where that costs `n`; and one learning rate and weight decay falls on all weights, where that code gives `dt`, `A` and
`B` their own. Kernel and convolution are computed in float32 at least. Axes: `b` batch, `l` tokens, `d` channels, `n`
state, `m = n / 2` pairs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.dtypes import HALF, full_precision
from dmm.errors import InputError, whole_number
from dmm.layers.mamba import STEP_RANGE
from dmm.ssm import hippo_legs

LONGEST_PRODUCT = 128
"""Tokens that are convolved by a product of matrices; more go through Fourier transforms."""
B_LIMIT = 2.0
"""Of the imaginary parts of S4's initial `B`, as in state-spaces/s4."""
System = tuple[Tensor, Tensor, Tensor]
"""`A_bar`, `B_bar` and `C` of every channel, discrete."""


class StateSpace(nn.Module, ABC):
    """What S4 and S4D share: `(b, l, d) -> (b, l, d)`, each channel by itself, causal, from the zero state.

    Weights may have an axis of several models in front of all others; a batch is then those of the models in turn.
    """

    log_dt: nn.Parameter
    C: nn.Parameter
    D: nn.Parameter | None

    def __init__(self, d: int, state_size: int, skip: bool):
        super().__init__()
        self.d, self.state_size = whole_number("d", d, 1), whole_number("state_size", state_size, 1)
        if state_size % 2:
            raise InputError(f"state_size: got {state_size}, allowed are even numbers: states come in conjugate pairs")
        low, high = (math.log(step) for step in STEP_RANGE)
        self.log_dt = nn.Parameter(torch.rand(self.d) * (high - low) + low)
        self.C = nn.Parameter(_reals(torch.randn(self.d, self.state_size // 2, dtype=torch.complex64)))
        self.D = nn.Parameter(torch.randn(self.d)) if skip else None
        self._frozen: System | None = None

    @abstractmethod
    def system(self) -> System:
        """The discrete system with the weights of now."""

    @abstractmethod
    def kernel(self, length: int) -> Tensor:
        """`K_0 .. K_{length - 1}` of every channel: `(d, length)`."""

    @abstractmethod
    def next_state(self, system: System, state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """`C h_t (b, d)` and `h_t (b, d, n)` from `h_{t-1}` and `u_t (b, d)`."""

    def forward(self, u: Tensor) -> Tensor:
        """All tokens at once, by convolution: `(b, l, d) -> (b, l, d)`."""
        models, length, x = self.log_dt.shape[:-1], u.shape[1], _full(u)
        with full_precision(u.device):
            apart = x.mT.reshape(*models, -1, self.d, length)
            y = convolve(self.kernel(length), apart)
            if self.D is not None:
                y = y + _full(self.D)[..., None, :, None] * apart
        return y.reshape(-1, self.d, length).mT.to(u.dtype)

    def init_state(self, batch: int) -> Tensor:
        """The state before the first token, all zero: `(b, d, n)`."""
        return self.C.new_zeros(batch, self.d, self.state_size)

    def extend(self, u: Tensor, state: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The next `t` tokens, as a recurrence: `(b, t, d)`, state -> `(b, t, d)`, new state; equals `forward`.

        Args:
            u: the tokens.
            state: from `init_state` or the previous call; not changed.
            present: `(b, t)`, 0 for tokens that a row begins without, 1 for all others. They must come first in a row
                that is at its initial state; they leave that as it is.
        """
        kind, x, h = state.dtype, _full(u if present is None else u * present[..., None]), _full(state)
        outputs = []
        with full_precision(u.device):
            system = self._frozen or self.system()
            for token in x.unbind(1):
                y, h = self.next_state(system, h, token)
                outputs.append(y if self.D is None else y + _full(self.D) * token)
        return torch.stack(outputs, dim=1).to(u.dtype), h.to(kind)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token: `(b, d)`, state -> `(b, d)`, new state. Steps from `init_state` equal `forward`."""
        y, state = self.extend(u[:, None], state)
        return y[:, 0], state

    @torch.no_grad()
    def freeze(self) -> None:
        """For acting: the discrete system is worked out once. The weights must not change then."""
        self._frozen = self.system()

    def _apply(self, *arguments: Any, **keywords: Any) -> StateSpace:
        """Other dtypes and devices (`double`, `to`) make other weights, which are not frozen."""
        self._frozen = None
        return super()._apply(*arguments, **keywords)  # type: ignore[no-any-return, no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a stored layer, is not frozen: what is worked out belongs to the weights of the original."""
        return self.__dict__ | {"_frozen": None}

    def _poles(self, log_real: Tensor, imaginary: Tensor) -> Tensor:
        """`lambda`, with a negative real part."""
        return torch.complex(-torch.exp(_full(log_real)), _full(imaginary))


class S4(StateSpace):
    """S4 with `A = diag(lambda) - p p^*` over all conjugate pairs, and the bilinear rule.

        A_bar = (I - dt/2 A)^{-1} (I + dt/2 A),    B_bar = (I - dt/2 A)^{-1} dt B

    Args:
        d: channels.
        state_size: `n`, even.
        skip: whether there is `D u`.
        share: one `A` and `B` for all channels, where each has its own otherwise.
        train_dynamics: whether `dt`, `A` and `B` are trained, or `C` and `D` alone.

    Raises:
        InputError: sizes below 1, or an odd state.
    """

    def __init__(
        self, d: int, state_size: int = 64, *, skip: bool = True, share: bool = False, train_dynamics: bool = True
    ):
        super().__init__(d, state_size, skip)
        poles, p, b = legs_pairs(self.state_size)
        b = torch.complex(b.real, b.imag.clamp(-B_LIMIT, B_LIMIT))
        systems = 1 if share else self.d
        self.log_A_real = nn.Parameter(torch.log(-poles.real).float().repeat(systems, 1))
        self.A_imag = nn.Parameter(poles.imag.float().repeat(systems, 1))
        self.P, self.B = (nn.Parameter(_reals(each).float().repeat(systems, 1, 1)) for each in (p, b))
        for weight in (self.log_dt, self.log_A_real, self.A_imag, self.P, self.B):
            weight.requires_grad_(train_dynamics)

    def system(self) -> System:
        """`A_bar (d, n, n)`, `B_bar (d, n)` and `C (d, n)` for the real state `[Re h, Im h]`.

        `I - dt/2 A` is diagonal plus rank one, and so is its inverse `M` (Sherman and Morrison); `A_bar = 2 M - I`.
        """
        poles, dt = self._poles(self.log_A_real, self.A_imag), torch.exp(_full(self.log_dt))[..., None]  # (d, 1)
        p, b, c = (_complex(weight) for weight in (self.P, self.B, self.C))
        diagonal = 1 / (1 - dt / 2 * poles)  # (d, m)
        column, row = diagonal * p, p.conj() * diagonal  # M z = diagonal z - scale column (2 Re row z)
        scale = dt / 2 / (1 + dt * (row * p).real.sum(-1, keepdim=True))
        driven = diagonal * b - scale * column * 2 * (row * b).real.sum(-1, keepdim=True)  # M b
        real, imaginary = torch.diag_embed(diagonal.real), torch.diag_embed(diagonal.imag)
        M = torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)
        M = M - scale[..., None] * _stacked(column)[..., :, None] * _twice(row)[..., None, :]
        eye = torch.eye(self.state_size, dtype=M.dtype, device=M.device)
        return 2 * M - eye, dt * _stacked(driven), _twice(c)

    def kernel(self, length: int) -> Tensor:
        """See `StateSpace.kernel`. `K_{i + r j} = (C A_bar^{r j}) (A_bar^i B_bar)` with `r` about the root of l."""
        power, B, C = self.system()
        right = B[..., None]  # (d, n, r): A_bar^i B_bar
        while right.shape[-1] ** 2 < length:
            right = torch.cat([right, power @ right], dim=-1)
            power = power @ power
        left = [C]  # C A_bar^{r j}; power is A_bar^r
        while len(left) * right.shape[-1] < length:
            left.append((left[-1][..., None, :] @ power).squeeze(-2))
        return (torch.stack(left, dim=-2) @ right).flatten(-2)[..., :length]

    def next_state(self, system: System, state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `StateSpace.next_state`."""
        A, B, C = system
        state = torch.einsum("d i j, b d j -> b d i", A, state) + B * u[..., None]
        return (state * C).sum(-1), state


class S4D(StateSpace):
    """S4D: diagonal, with zero-order hold and `B = 1`.

        A_bar = exp(dt lambda),    B_bar = (exp(dt lambda) - 1) / lambda

    Args:
        d: channels.
        state_size: `n`, even.
        skip: whether there is `D u`.

    Raises:
        InputError: sizes below 1, or an odd state.
    """

    def __init__(self, d: int, state_size: int = 64, *, skip: bool = True):
        super().__init__(d, state_size, skip)
        pairs = self.state_size // 2
        self.log_A_real = nn.Parameter(torch.full((self.d, pairs), 0.5).log())
        self.A_imag = nn.Parameter(math.pi * torch.arange(pairs, dtype=torch.float32).repeat(self.d, 1))

    def system(self) -> System:
        """`A_bar`, `B_bar` and `C`, complex, of one of each pair: `(d, m)` each."""
        exponent, poles = self._exponent()
        return exponent.exp(), torch.expm1(exponent) / poles, _complex(self.C)

    def kernel(self, length: int) -> Tensor:
        """See `StateSpace.kernel`."""
        _, B, C = self.system()
        exponent, _ = self._exponent()
        powers = torch.exp(exponent[..., None] * torch.arange(length, device=exponent.device))  # (d, m, l)
        return 2 * ((C * B)[..., None, :] @ powers).squeeze(-2).real

    def next_state(self, system: System, state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `StateSpace.next_state`."""
        A, B, C = system
        h = A * torch.complex(*state.chunk(2, dim=-1)) + B * u[..., None]
        return 2 * (C * h).real.sum(-1), _stacked(h)

    def _exponent(self) -> tuple[Tensor, Tensor]:
        """`dt lambda` and `lambda`, `(d, m)`."""
        poles = self._poles(self.log_A_real, self.A_imag)
        return torch.exp(_full(self.log_dt))[..., None] * poles, poles


class S4Block(nn.Module):
    """The block of state-spaces/s4, without norm and residual: `GLU(W gelu(K * u + D u) + b)`, `(b, l, d)`.

    Args:
        d: channels.
        state_size: `n`, even; 64 in S4.
        diagonal: S4D where it is True, else S4.
        skip: whether there is `D u`.
    """

    def __init__(self, d: int, *, state_size: int = 64, diagonal: bool = False, skip: bool = True):
        super().__init__()
        self.ssm: S4 | S4D = (S4D if diagonal else S4)(d, state_size, skip=skip)
        self.project_out = nn.Linear(d, 2 * d)

    def forward(self, x: Tensor) -> Tensor:
        """All tokens at once: `(b, l, d) -> (b, l, d)`, causal, from the zero state."""
        return self._output(self.ssm(x))

    def init_state(self, batch: int) -> Tensor:
        """The state before the first token: `(b, d, n)`."""
        return self.ssm.init_state(batch)

    def extend(self, x: Tensor, state: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The next `t` tokens: `(b, t, d)`, state -> `(b, t, d)`, new state; see `StateSpace.extend`."""
        y, state = self.ssm.extend(x, state, present)
        return self._output(y), state

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token: `(b, d)`, state -> `(b, d)`, new state. Steps from `init_state` equal `forward`."""
        y, state = self.ssm.step(x, state)
        return self._output(y), state

    def _output(self, y: Tensor) -> Tensor:
        return F.glu(self.project_out(F.gelu(y)), dim=-1)


def convolve(kernel: Tensor, u: Tensor) -> Tensor:
    """`y_t = sum_s K_{t-s} u_s`, causal, for every channel: kernel `(..., d, l)`, signals `(..., b, d, l)`.

    Short signals are multiplied by the Toeplitz matrix of the kernel; long ones go through Fourier transforms, which
    round over the whole signal, so that there a later token can move an earlier output by a rounding error.
    """
    length: int = u.shape[-1]
    y: Tensor
    if length <= LONGEST_PRODUCT:
        # rows of [K, 0], each cut one short, so that the next begins one place later: (s, t) is K_{t-s}, or zero
        rows = F.pad(kernel, (0, length))[..., None, :].expand(*kernel.shape[:-1], length, 2 * length).flatten(-2)
        matrix = rows[..., : length * (2 * length - 1)].view(*rows.shape[:-1], length, -1)[..., :length]
        y = (u.transpose(-3, -2) @ matrix).transpose(-3, -2)  # (d, b, s) times (d, s, t)
        return y
    size = 2 * length  # behind as many zeros the circular convolution does not wrap around
    spectrum = torch.fft.rfft(kernel, n=size)[..., None, :, :] * torch.fft.rfft(u, n=size)
    y = torch.fft.irfft(spectrum, n=size)[..., :length]
    return y


def legs_pairs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS as `diag(lambda) - p p^*` with input `b`, one of each conjugate pair: `(n / 2,)` complex each.

    `A + p p^T` with `p_i = sqrt(i + 1/2)` is `-1/2` and a skew-symmetric matrix, which a unitary one diagonalises.
    Source: Gu et al. 2022 (S4), theorem 1 and appendix C.
    """
    A, B = hippo_legs(n, torch.float64)
    p = torch.sqrt(torch.arange(n, dtype=torch.float64) + 0.5)
    skew = A + p[:, None] * p + 0.5 * torch.eye(n, dtype=torch.float64)
    frequencies, vectors = torch.linalg.eigh(-1j * skew)  # ascending: the second half is positive
    frequencies, vectors = frequencies[n // 2 :], vectors[:, n // 2 :]
    return torch.complex(torch.full_like(frequencies, -0.5), frequencies), *(
        vectors.mH @ each.to(vectors.dtype) for each in (p, B)
    )


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF else x


def _reals(x: Tensor) -> Tensor:
    """Complex numbers as weights: `(..., m)` -> `(..., m, 2)`."""
    return torch.view_as_real(x).clone()


def _complex(weight: Tensor) -> Tensor:
    return torch.complex(*_full(weight).unbind(-1))


def _stacked(z: Tensor) -> Tensor:
    """`(..., m)` complex -> `[Re z, Im z] (..., n)`."""
    return torch.cat([z.real, z.imag], dim=-1)


def _twice(z: Tensor) -> Tensor:
    """The row by which `[Re h, Im h]` gives `2 Re(z h)`: `(..., m)` complex -> `(..., n)`."""
    return torch.cat([2 * z.real, -2 * z.imag], dim=-1)
