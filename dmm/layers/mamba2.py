"""The Mamba-2 block, whole and without its convolution.

    z, x, B, C, delta = in_proj(input)           gate and scan input (b, l, e), B and C (b, l, n), a step size per head
    x, B, C = silu(conv1d([x, B, C]))            depth-wise, causal; left out where the convolution is
    delta = softplus(delta + dt_bias)
    out = out_proj(RMSNorm(scan(x, delta, A, B, C, D) * silu(z)))

The scan is Mamba's with one decay `A` and one step size for all `p` channels of a head, and one skip `D`: it is
computed as that (`dmm.selective_scan`), not by the matrix products that this structure allows on a GPU.

Source: Dao & Gu 2024, section 7 and listing 1; `mamba_ssm.modules.mamba2.Mamba2` with one group, whose parameter names
this file keeps so that its `state_dict` loads here. Axes: `b` batch, `l` tokens, `d` channels, `e = expand * d` inner
channels in heads of `p`, `n` state.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from dmm.errors import InputError, require_choice, whole_number
from dmm.layers.activations import ACTIVATIONS, Activation
from dmm.layers.mamba import STEP_RANGE, MambaState
from dmm.scan import selective_scan

DECAY_RANGE = (1.0, 16.0)
"""Initial `-A` of the heads: uniform between these, as in Mamba-2."""


class Mamba2Block(nn.Module):
    """A Mamba-2 block `(b, l, d) -> (b, l, d)`, without norm in front and residual.

    Args:
        d: channels.
        state_size: `n` per inner channel; 128 in Mamba-2.
        expand: `e = expand * d` inner channels; 2 in Mamba-2, 1 in the released DMM code.
        head_size: `p`, a divisor of `e`; 64 in Mamba-2, 16 in the released DMM code.
        conv_width: taps of the depth-wise convolution over x, B and C (4 in Mamba-2); None leaves the convolution out
            and keeps its activation. The released DMM code comes down to that: its line with the convolution is
            commented out, whose weights it still makes.
        activation: of both branches, what the scan reads and the gate.
        skip: whether the scan has its skip `D x`.
        backend: of the scan, see `dmm.selective_scan`.

    Raises:
        InputError: sizes below 1, heads that do not divide the inner channels, or an unknown activation.
    """

    def __init__(
        self,
        d: int,
        *,
        state_size: int = 128,
        expand: int = 2,
        head_size: int = 64,
        conv_width: int | None = 4,
        activation: Activation = "silu",
        skip: bool = True,
        backend: str = "auto",
    ):
        super().__init__()
        sizes = {"d": d, "state_size": state_size, "expand": expand, "head_size": head_size}
        d, state_size, expand, head_size = (whole_number(name, value, 1) for name, value in sizes.items())
        conv_width = None if conv_width is None else whole_number("conv_width", conv_width, 1)
        require_choice("activation", activation, Activation)
        e = expand * d
        if e % head_size:
            raise InputError(f"head_size: got {head_size}, allowed are divisors of the {e} inner channels")
        heads, mixed = e // head_size, e + 2 * state_size
        self.inner, self.state_size, self.head_size = e, state_size, head_size
        self.activation, self.backend = activation, backend
        self.in_proj = nn.Linear(d, e + mixed + heads, bias=False)
        self.conv1d = (
            None if conv_width is None else nn.Conv1d(mixed, mixed, conv_width, groups=mixed, padding=conv_width - 1)
        )
        low, high = (math.log(step) for step in STEP_RANGE)
        step = torch.exp(torch.rand(heads) * (high - low) + low)
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(*DECAY_RANGE).log())
        self.D = nn.Parameter(torch.ones(heads)) if skip else None
        self.norm = nn.RMSNorm(e, eps=1e-5)
        self.out_proj = nn.Linear(e, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """All tokens at once: `(b, l, d) -> (b, l, d)`, causal, from the zero state."""
        z, mixed, dt = self._branches(x)
        if self.conv1d is not None:
            mixed = self.conv1d(mixed.mT)[..., : x.shape[1]].mT
        return self._output(self._scan(self._activate(mixed), dt, None)[0], z)

    def init_state(self, batch: int) -> MambaState:
        """The state before the first token, all zero: `conv (b, e + 2n, conv_width - 1)`, `ssm (b, e, n)`."""
        width = 1 if self.conv1d is None else self.conv1d.kernel_size[0]
        zeros, channels = self.A_log.new_zeros, self.inner + 2 * self.state_size
        return MambaState(zeros(batch, channels, width - 1), zeros(batch, self.inner, self.state_size))

    def extend(self, x: Tensor, state: MambaState, present: Tensor | None = None) -> tuple[Tensor, MambaState]:
        """The next `t` tokens: `(b, t, d)`, state -> `(b, t, d)`, new state; see `MambaBlock.extend`."""
        z, mixed, dt = self._branches(x)
        conv = state.conv
        if self.conv1d is not None:
            mixed = mixed if present is None else mixed * present[..., None]
            inputs = torch.cat([state.conv, mixed.mT], dim=-1)  # (b, e + 2n, width - 1 + t)
            windows = inputs.unfold(-1, self.conv1d.kernel_size[0], 1)
            mixed = (windows * self.conv1d.weight).sum(-1).mT + cast(Tensor, self.conv1d.bias)
            conv = inputs[..., x.shape[1] :]
        mixed = self._activate(mixed)
        if present is not None:
            mixed = mixed * present[..., None]  # behind the convolution, whose bias lets absent tokens in again
        y, ssm = self._scan(mixed, dt, state.ssm)
        return self._output(y, z), MambaState(conv, ssm)

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """One token: `(b, d)`, state -> `(b, d)`, new state. Steps from `init_state` equal `forward`."""
        y, state = self.extend(x[:, None], state)
        return y[:, 0], state

    def _branches(self, x: Tensor) -> tuple[Tensor, ...]:
        """The gate `(b, l, e)`, what the scan reads `(b, l, e + 2n)` and the heads' step sizes, all as projected."""
        heads = self.inner // self.head_size
        return self.in_proj(x).split([self.inner, self.inner + 2 * self.state_size, heads], dim=-1)  # type: ignore[no-any-return]

    def _activate(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](x)

    def _scan(self, mixed: Tensor, dt: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """`y (b, l, e)` and the last state `(b, e, n)`: each channel of a head has the head's decay, step and skip."""
        x, B, C = mixed.split([self.inner, self.state_size, self.state_size], dim=-1)  # type: ignore[no-untyped-call]
        A = self._of_channels(-torch.exp(self.A_log))[..., None].expand(*(-1,) * self.A_log.ndim, self.state_size)
        return selective_scan(  # type: ignore[return-value]
            *(x, self._of_channels(dt), A, B, C, None if self.D is None else self._of_channels(self.D)),
            delta_bias=self._of_channels(self.dt_bias),
            delta_softplus=True,
            initial_state=start,
            return_last_state=True,
            backend=self.backend,
        )

    def _of_channels(self, x: Tensor) -> Tensor:
        """One number for each head -> one for each inner channel."""
        return x.repeat_interleave(self.head_size, dim=-1)

    def _output(self, y: Tensor, z: Tensor) -> Tensor:
        return self.out_proj(self.norm(y * self._activate(z)))  # type: ignore[no-any-return]
