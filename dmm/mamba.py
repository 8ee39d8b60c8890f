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
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.errors import InputError
from dmm.scan import selective_scan, selective_step
from dmm.ssm import random_diagonal, s4d_real

StepInit = Literal["mamba", "wiped"]
AInit = Literal["s4d-real", "uniform"]
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
    """The scan's input, after convolution and SiLU: `(b, l, e)`."""
    z: Tensor
    """The gate branch before its SiLU: `(b, l, e)`."""
    delta: Tensor
    """Step sizes, after bias and softplus: `(b, l, e)`."""
    B: Tensor
    """`(b, l, n)`."""
    C: Tensor
    """`(b, l, n)`."""
    y: Tensor
    """The scan's output with the skip `D x`, before the gate: `(b, l, e)`."""
    gated: Tensor
    """`y * silu(z)`: `(b, l, e)`."""


class MambaBlock(nn.Module):
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
        backend: of the scan, see `dmm.selective_scan`.

    Raises:
        InputError: sizes below 1, an unknown `step_init` or an unknown `a_init`.
    """

    def __init__(
        self,
        d: int,
        *,
        state_size: int = 16,
        expand: int = 2,
        conv_width: int | None = 4,
        step_init: StepInit = "mamba",
        a_init: AInit = "s4d-real",
        backend: str = "auto",
    ):
        super().__init__()
        for name, value in {
            "d": d,
            "state_size": state_size,
            "expand": expand,
            "conv_width": 1 if conv_width is None else conv_width,
        }.items():
            if value < 1:
                raise InputError(f"{name}: got {value}, allowed is at least 1")
        for name, choice, literal in (("step_init", step_init, StepInit), ("a_init", a_init, AInit)):
            if choice not in get_args(literal):
                raise InputError(f"{name}: got {choice!r}, allowed are {', '.join(get_args(literal))}")
        e, rank = expand * d, math.ceil(d / 16)
        self.inner, self.state_size, self.rank, self.backend = e, state_size, rank, backend
        self.in_proj = nn.Linear(d, 2 * e, bias=False)
        self.conv1d = None if conv_width is None else nn.Conv1d(e, e, conv_width, groups=e, padding=conv_width - 1)
        self.x_proj = nn.Linear(e, rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(rank, e)
        A = s4d_real(state_size).repeat(e, 1) if a_init == "s4d-real" else random_diagonal(e * state_size).view(e, -1)
        self.A_log = nn.Parameter(torch.log(-A))
        self.D = nn.Parameter(torch.ones(e))
        self.out_proj = nn.Linear(e, d, bias=False)
        _init_step_size(self.dt_proj) if step_init == "mamba" else init_linear(self.dt_proj)

    def forward(self, x: Tensor) -> Tensor:
        """All tokens at once: `(b, l, d) -> (b, l, d)`, causal, from the zero state."""
        x, z = self._branches(x)
        delta, B, C = self._select(x)
        A, bias = -torch.exp(self.A_log), self.dt_proj.bias
        y = selective_scan(x, delta, A, B, C, self.D, z, delta_bias=bias, delta_softplus=True, backend=self.backend)
        return self.out_proj(y)  # type: ignore[no-any-return]

    def signals(self, x: Tensor) -> MambaSignals:
        """Every signal inside `forward` for the input `(b, l, d)`, one at a time, for looking at."""
        x, z = self._branches(x)
        raw, B, C = self._select(x)
        delta = F.softplus(raw + self.dt_proj.bias)
        y = selective_scan(x, delta, -torch.exp(self.A_log), B, C, self.D, backend=self.backend)
        assert isinstance(y, Tensor)
        return MambaSignals(x, z, delta, B, C, y, y * F.silu(z))

    def init_state(self, batch: int) -> MambaState:
        """The state before the first token, all zero."""
        width = 1 if self.conv1d is None else self.conv1d.kernel_size[0]
        zeros = self.A_log.new_zeros
        return MambaState(zeros(batch, self.inner, width - 1), zeros(batch, self.inner, self.state_size))

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """One token: `(b, d)`, state -> `(b, d)`, new state. Steps from `init_state` equal `forward`."""
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (b, e) each
        conv = state.conv
        if self.conv1d is not None:
            window = torch.cat([state.conv, x[..., None]], dim=-1)  # (b, e, width)
            x = torch.einsum("b e w, e w -> b e", window, self.conv1d.weight[:, 0]) + self.conv1d.bias  # type: ignore[operator]
            conv = window[..., 1:]
        x = F.silu(x)
        delta, B, C = self._select(x)
        A, bias = -torch.exp(self.A_log), self.dt_proj.bias
        y, ssm = selective_step(
            state.ssm, x, delta, A, B, C, self.D, z, delta_bias=bias, delta_softplus=True
        )  # (b, e), (b, e, n)
        return self.out_proj(y), MambaState(conv, ssm)

    def _branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scan's input and the gate before its SiLU, `(b, l, e)` each."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        if self.conv1d is not None:
            x = self.conv1d(x.mT)[..., : x.shape[1]].mT
        return F.silu(x), z

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the token selects: the step size before its bias and softplus `(..., e)`, and `B`, `C` `(..., n)`."""
        low, B, C = self.x_proj(x).split([self.rank, self.state_size, self.state_size], dim=-1)
        return F.linear(low, self.dt_proj.weight), B, C


def _init_step_size(dt_proj: nn.Linear) -> None:
    """`softplus(bias)` log-uniform in `STEP_RANGE`; weight `U(-1, 1) / sqrt(rank)`, as in `mamba_simple.Mamba`."""
    low, high = (math.log(step) for step in STEP_RANGE)
    step = torch.exp(torch.rand(dt_proj.out_features) * (high - low) + low)
    with torch.no_grad():
        nn.init.uniform_(dt_proj.weight, -(dt_proj.in_features**-0.5), dt_proj.in_features**-0.5)
        dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus


def init_linear(layer: nn.Linear) -> None:
    """The generic start of GPT-2, Decision Transformer and the released DMM code: weight `N(0, 0.02)`, bias zero."""
    nn.init.normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
