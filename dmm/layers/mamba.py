"""The Mamba block, whole and without its convolution.

    x, z = in_proj(input)                        two branches (b, l, e)
    x = silu(conv1d(x))                          depth-wise, causal; left out in the modified block of the DMM paper
    delta, B, C = x_proj(x);  delta = softplus(dt_proj(delta))
    out = out_proj(selective_scan(x, delta, A, B, C, D) * silu(z))

Source: Gu & Dao 2024, section 3.4 and figure 3; `mamba_ssm.modules.mamba_simple.Mamba`, whose parameter names this file
keeps so that its `state_dict` loads here. Axes: `b` batch, `l` tokens, `d` channels, `e = expand * d` inner channels,
`n` state, `r` rank of the step size.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.errors import require_choice, whole_number
from dmm.layers.activations import ACTIVATIONS, Activation
from dmm.layers.frozen import Freezable
from dmm.layers.initial import init_linear
from dmm.scan import selective_scan
from dmm.scan.fused import kernels
from dmm.ssm import random_diagonal, s4d_real
from dmm.tracing import watched

StepInit = Literal["mamba", "wiped"]
AInit = Literal["s4d-real", "uniform"]
KERNEL_DTYPES = (torch.float32, torch.float64)
STEP_RANGE = (1e-3, 0.1)
"""Initial step sizes: log-uniform between these, as in Mamba."""


class MambaState(NamedTuple):
    """What a Mamba block remembers between two tokens."""

    conv: Tensor
    """The last `conv_width - 1` inputs of the convolution, oldest first: `(b, e, conv_width - 1)`."""
    ssm: Tensor
    """The state of the selective scan: `(b, e, n)`."""


class MambaSignals(NamedTuple):
    """What flows through a Mamba block in one pass over all tokens; `out_proj(gated)` is its output."""

    x: Tensor
    """The scan's input, after convolution and activation: `(b, l, e)`."""
    z: Tensor
    """The gate branch before its activation: `(b, l, e)`."""
    delta: Tensor
    """Step sizes, after bias and softplus: `(b, l, e)`."""
    B: Tensor
    """`(b, l, n)`."""
    C: Tensor
    """`(b, l, n)`."""
    y: Tensor
    """The scan's output with the skip `D x`, if there is one, before the gate: `(b, l, e)`."""
    gated: Tensor
    """`y * silu(z)`, or with another activation: `(b, l, e)`."""


class MambaBlock(Freezable):
    """A Mamba block `(b, l, d) -> (b, l, d)`, without norm and residual.

    Args:
        d: channels.
        state_size: `n` per inner channel.
        expand: `e = expand * d` inner channels; 2 in Mamba, 1 in the released DMM code.
        conv_width: taps of the depth-wise convolution (4 in Mamba); None leaves the convolution out and keeps its
            SiLU, which is the *modified Mamba* of the DMM paper (section 3.3).
        step_init: `mamba` starts the step sizes log-uniform in [0.001, 0.1]; `wiped` is what the released DMM code
            ends up with after its generic initialisation: weight `N(0, 0.02)` and bias zero, hence a step size of
            softplus(0) = 0.693 in every channel.
        a_init: `s4d-real` starts `A` at `-(1, ..., n)` in each channel, as Mamba does; `uniform` draws its entries from
            `-U[1, 2]`, the likely reading of "random" in the DMM paper's table 8.
        rank: `r`; None takes `d / 16`, rounded up, as Mamba does.
        activation: of both branches, the scan's input and the gate: `silu` in Mamba, `gelu` or `relu` in the DMM
            paper's appendix D.
        skip: whether the scan has its skip `D x`.
        backend: of the scan, see `dmm.selective_scan`.

    Raises:
        InputError: sizes below 1, an unknown `step_init`, `a_init` or `activation`.
    """

    D: Any
    """The skip, `(e,)`, or None."""

    def __init__(
        self,
        d: int,
        *,
        state_size: int = 16,
        expand: int = 2,
        conv_width: int | None = 4,
        step_init: StepInit = "mamba",
        a_init: AInit = "s4d-real",
        rank: int | None = None,
        activation: Activation = "silu",
        skip: bool = True,
        backend: str = "auto",
    ):
        super().__init__()
        sizes = {"d": d, "state_size": state_size, "expand": expand}
        d, state_size, expand = (whole_number(name, value, 1) for name, value in sizes.items())
        rank = math.ceil(d / 16) if rank is None else whole_number("rank", rank, 1)
        conv_width = None if conv_width is None else whole_number("conv_width", conv_width, 1)
        choices = {
            "step_init": (step_init, StepInit),
            "a_init": (a_init, AInit),
            "activation": (activation, Activation),
        }
        for name, (choice, literal) in choices.items():
            require_choice(name, choice, literal)
        e = expand * d
        self.inner, self.state_size, self.rank, self.backend = e, state_size, rank, backend
        self.in_proj = nn.Linear(d, 2 * e, bias=False)
        self.conv1d = None if conv_width is None else nn.Conv1d(e, e, conv_width, groups=e, padding=conv_width - 1)
        self.x_proj = nn.Linear(e, rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(rank, e)
        A = s4d_real(state_size).repeat(e, 1) if a_init == "s4d-real" else random_diagonal(e * state_size).view(e, -1)
        self.A_log = nn.Parameter(torch.log(-A))
        self.activation = activation
        self.D = nn.Parameter(torch.ones(e)) if skip else None
        self.out_proj = nn.Linear(e, d, bias=False)
        _init_step_size(self.dt_proj) if step_init == "mamba" else init_linear(self.dt_proj)

    def init_projections(self) -> None:
        """Start the projections as the frame starts its layers, with `N(0, 0.02)`, and not as PyTorch does."""
        for layer in (self.in_proj, self.x_proj, self.out_proj):
            init_linear(layer)

    def forward(self, x: Tensor) -> Tensor:
        """All tokens at once: `(b, l, d) -> (b, l, d)`, causal, from the zero state."""
        x, z = self._branches(x)
        delta, B, C = self._select(x)
        A, bias = -torch.exp(self.A_log), self.dt_proj.bias
        gate = z if self.activation == "silu" else None  # the scan's own
        y = selective_scan(x, delta, A, B, C, self.D, gate, delta_bias=bias, delta_softplus=True, backend=self.backend)
        assert isinstance(y, Tensor)
        return self.out_proj(y if gate is not None else y * ACTIVATIONS[self.activation](z))  # type: ignore[no-any-return]

    def signals(self, x: Tensor) -> MambaSignals:
        """Every signal inside `forward` for the input `(b, l, d)`, one at a time, for looking at."""
        x, z = self._branches(x)
        raw, B, C = self._select(x)
        delta = F.softplus(raw + self.dt_proj.bias)
        y = selective_scan(x, delta, -torch.exp(self.A_log), B, C, self.D, backend=self.backend)
        assert isinstance(y, Tensor)
        return MambaSignals(x, z, delta, B, C, y, y * ACTIVATIONS[self.activation](z))

    def init_state(self, batch: int) -> MambaState:
        """The state before the first token, all zero."""
        width = 1 if self.conv1d is None else self.conv1d.kernel_size[0]
        zeros = self.A_log.new_zeros
        return MambaState(zeros(batch, self.inner, width - 1), zeros(batch, self.inner, self.state_size))

    def extend(self, x: Tensor, state: MambaState, present: Tensor | None = None) -> tuple[Tensor, MambaState]:
        """The next `t` tokens: `(b, t, d)`, state -> `(b, t, d)`, new state. From `init_state` it equals `forward`.

        Args:
            x: the tokens.
            state: from `init_state` or the previous call; not changed.
            present: `(b, t)`, 0 for tokens that a row begins without, 1 for all others. They must come first in a row
                that is at its initial state; they leave that as it is, and what they map to means nothing.
        """
        return self.cell_of_now().extend(x, state, present)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """One token: `(b, d)`, state -> `(b, d)`, new state. Steps from `init_state` equal `forward`."""
        y, state = self.extend(x[:, None], state)
        return y[:, 0], state

    def make_cell(self) -> MambaCell:
        return MambaCell(self)

    def _branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scan's input and the gate before its activation, `(b, l, e)` each."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        if self.conv1d is not None:
            x = self.conv1d(x.mT)[..., : x.shape[1]].mT
        return ACTIVATIONS[self.activation](x), z

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the token selects: the step size before its bias and softplus `(..., e)`, and `B`, `C` `(..., n)`."""
        low, B, C = self.x_proj(x).split([self.rank, self.state_size, self.state_size], dim=-1)
        return F.linear(low, self.dt_proj.weight), B, C


class MambaCell:
    """What takes a Mamba block's tokens a few at a time, with the block's weights of now.

    Nothing here is looked up or worked out for each token that can be once: in a step of one environment, that takes
    longer than the arithmetic. Where no gradient is asked for, the CPU kernel is called without the checks and the
    records of `selective_scan`.
    """

    def __init__(self, block: MambaBlock):
        projections = (block.in_proj, block.x_proj, block.dt_proj, block.out_proj)
        self.in_proj, self.x_proj, self.dt_proj, self.out_proj = (layer.weight for layer in projections)
        self.sizes = [block.rank, block.state_size, block.state_size]
        self.conv = None if block.conv1d is None else (block.conv1d.weight, cast(Tensor, block.conv1d.bias))
        self.A, self.D, self.bias, self.backend = -torch.exp(block.A_log), block.D, block.dt_proj.bias, block.backend
        self.activate, self.scan_gates = ACTIVATIONS[block.activation], block.activation == "silu"
        served = block.backend in ("auto", "cpp") and self.A.device.type == "cpu" and self.A.dtype in KERNEL_DTYPES
        self.kernel = kernels().get("cpp") if served else None

    def extend(self, x: Tensor, state: MambaState, present: Tensor | None = None) -> tuple[Tensor, MambaState]:
        """See `MambaBlock.extend`."""
        x, z = F.linear(x, self.in_proj).chunk(2, dim=-1)  # (b, t, e) each
        x, conv = self._convolve(x, state.conv, present)
        x = self.activate(x)
        if present is not None:
            x = x * present[..., None]  # behind the convolution, whose bias lets absent tokens in again
        low, B, C = F.linear(x, self.x_proj).split(self.sizes, dim=-1)  # type: ignore[no-untyped-call]
        y, ssm = self._scan(x, F.linear(low, self.dt_proj), B, C, z if self.scan_gates else None, state.ssm)
        y = y if self.scan_gates else y * self.activate(z)
        return F.linear(y, self.out_proj), MambaState(conv, ssm)

    def _convolve(self, x: Tensor, state: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """The convolution's outputs for the inputs `(b, t, e)`, and its new state."""
        if self.conv is None:
            return x, state
        weight, bias = self.conv  # (e, 1, width), (e,)
        x = x if present is None else x * present[..., None]
        inputs = torch.cat([state, x.mT], dim=-1)  # (b, e, width - 1 + t)
        y = (inputs.unfold(-1, weight.shape[-1], 1) * weight).sum(-1)  # (b, e, t)
        return y.mT + bias, inputs[..., x.shape[1] :]

    def _scan(
        self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor | None, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`y (b, t, e)`, gated where a gate is given, and the last state `(b, e, n)`."""
        fits = start.shape == (len(u), *self.A.shape) and start.dtype == u.dtype == self.A.dtype
        near = u.device == start.device == self.A.device
        if self.kernel is None or torch.is_grad_enabled() or not (fits and near) or watched(u, start):
            return selective_scan(  # type: ignore[return-value]
                *(u, delta, self.A, B, C, self.D, z),
                delta_bias=self.bias,
                delta_softplus=True,
                initial_state=start,
                return_last_state=True,
                backend=self.backend,
            )
        u, B, C, start = (t.contiguous() for t in (u, B, C, start))
        z, D = None if z is None else z.contiguous(), None if self.D is None else self.D[None]
        y, last, _ = self.kernel.forward(u, delta, self.A[None], B, C, D, z, self.bias[None], True, start)
        return y, last


def _init_step_size(dt_proj: nn.Linear) -> None:
    """`softplus(bias)` log-uniform in `STEP_RANGE`; weight `U(-1, 1) / sqrt(rank)`, as in `mamba_simple.Mamba`."""
    low, high = (math.log(step) for step in STEP_RANGE)
    step = torch.exp(torch.rand(dt_proj.out_features) * (high - low) + low)
    with torch.no_grad():
        nn.init.uniform_(dt_proj.weight, -(dt_proj.in_features**-0.5), dt_proj.in_features**-0.5)
        dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
