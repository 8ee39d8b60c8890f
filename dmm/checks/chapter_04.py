"""Checks for chapter 4: the Mamba block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dmm.checks import as_array, call
from dmm.checks.calls import Calls, convolutions
from dmm.checks.cases import normal, plain, tensor
from dmm.checks.check import Case, Check
from dmm.layers.mamba import STEP_RANGE, MambaBlock
from dmm.scan import selective_step

Array = NDArray[np.float64]

REFERENCE = Path(__file__).parent / "mamba_ssm_block.npz"
"""Written by `python -m tests.mamba_ssm_reference`."""


class Reference(NamedTuple):
    """What mamba-ssm's own block answered, with everything that is needed to ask another block the same."""

    sizes: dict[str, int]
    """Arguments of `dmm.MambaBlock`."""
    weights: dict[str, Tensor]
    """The official block's `state_dict`."""
    tokens: Tensor
    """Input `(b, l, d)`."""
    output: Tensor
    """The official block's output `(b, l, d)`."""
    version: str
    """Of mamba-ssm."""


def mamba_ssm_reference() -> Reference:
    """Weights, input and output of mamba-ssm's block, from the file in the package."""
    with np.load(REFERENCE, allow_pickle=False) as file:
        weights = {
            name.removeprefix("weights."): torch.from_numpy(file[name]) for name in file if name.startswith("weights.")
        }
        sizes = {name: int(file[name]) for name in ("d", "state_size", "expand", "conv_width")}
        tokens, output = torch.from_numpy(file["tokens"]), torch.from_numpy(file["output"])
        return Reference(sizes, weights, tokens, output, str(file["version"]))


# Exercise 1


def check_conv(answer: Callable[..., Any]) -> None:
    """`answer(x (b, l, e), taps (e, w), bias (e,))` must be the causal depth-wise convolution, `(b, l, e)`."""
    _CONV(answer)


def _conv_cases() -> list[Case]:
    cases = []
    for seed, (b, length, e, width) in enumerate(
        [(2, 7, 4, 4), (3, 8, 5, 3), (1, 3, 2, 5), (2, 1, 3, 4), (1, 9, 7, 2), (4, 5, 1, 1)]
    ):
        cases.append(tuple(normal(seed, (b, length, e), (e, width), (e,))))
    return cases


def _right_conv(x: Tensor, taps: Tensor, bias: Tensor) -> Array:
    return _convolved(x, taps, bias, left=taps.shape[1] - 1)


def _taps_by_channels(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    width = x.shape[2]
    padded = F.pad(x, (0, 0, width - 1, 0))
    return torch.stack([taps[:, i] * padded[:, i : i + x.shape[1]] for i in range(width)]).sum(0) + bias


def _short_padding(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    width = taps.shape[1]
    padded = torch.cat([torch.zeros_like(x[:, : width - 1]), x], 1)
    parts = [taps[:, i] * padded[:, i : i + x.shape[1]] for i in range(width)]
    return bias + sum(parts)


def _first_repeated(x: Tensor, taps: Tensor, bias: Tensor) -> Array:
    left = taps.shape[1] - 1
    repeated = torch.cat([x[:, :1].expand(-1, left, -1), x], 1)
    return _convolved(repeated, taps, bias, left=left)[:, left:]


def _all_windows(x: Tensor, taps: Tensor, bias: Tensor) -> Array:
    """What padding on both sides gives, one output for each place of the window, `(b, l + w - 1, e)`."""
    longer = torch.cat([x, x.new_zeros(len(x), taps.shape[1] - 1, x.shape[2])], 1)
    return _right_conv(longer, taps, bias)


def _conv_of(change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Callable[..., Array]:
    return lambda x, taps, bias: _right_conv(*change(x, taps, bias))


def _placed(left: Callable[[int], int]) -> Callable[..., Array]:
    """With `left(w)` zeros before the first token."""
    return lambda x, taps, bias: _convolved(x, taps, bias, left=left(taps.shape[1]))


_CONV_MISTAKES: dict[str, Callable[..., Any]] = {
    "the first w - 1 tokens are missing: pad with w - 1 zeros before the first token": (
        lambda x, taps, bias: _right_conv(x, taps, bias)[:, taps.shape[1] - 1 :]
    ),
    "w - 1 tokens too many: padded on both sides, then cut the last w - 1 off": _all_windows,
    "the axes are swapped: return (b, l, e), tokens before channels": lambda *given: _right_conv(*given).swapaxes(1, 2),
    "the future leaks in: the zeros belong before the first token, not after the last": _placed(lambda w: 0),
    "the future leaks in: half of the zeros are on the right; put all of them before the first token": (
        _placed(lambda w: (w - 1) // 2)
    ),
    "the future leaks in: zeros are on both sides, more of them on the left; put all before the first token": (
        _placed(lambda w: w // 2)
    ),
    "off by one: the last tap belongs to the token itself, here it meets the token before it": _placed(lambda w: w),
    "the taps are in reverse order: the first tap meets the oldest token, the last the token itself": (
        _conv_of(lambda x, taps, bias: (x, taps.flip(1), bias))
    ),
    "channel for tap: taps is (e, w), one row per channel": _conv_of(lambda x, taps, bias: (x, taps.T, bias)),
    "the number of taps is not that of the channels: it is taps.shape[1]": _taps_by_channels,
    "the zeros are too few for a sequence that is shorter than the window: make w - 1 of them": _short_padding,
    "channel for token: the convolution runs along the channels, it must run along the tokens": (
        lambda x, taps, bias: _along_channels(x, taps, bias)
    ),
    "the bias is missing": _conv_of(lambda x, taps, bias: (x, taps, 0 * bias)),
    "the bias is added for every tap: once is enough": (
        _conv_of(lambda x, taps, bias: (x, taps, taps.shape[1] * bias))
    ),
    "the padding repeats the first token: before it there is nothing, so zeros": _first_repeated,
    "all channels share the taps of the first: each has its own row": (
        _conv_of(lambda x, taps, bias: (x, taps[:1].expand_as(taps), bias))
    ),
}


def _probed(answer: Callable[..., Any], case: Case) -> str:
    """What a wrong convolution depends on though it must not, found by changing one thing at a time."""
    x, taps, bias = case
    shape, width = tuple(x.shape), taps.shape[1]
    before = as_array(call(answer, x, taps, bias), shape, "the convolution")

    def moved(*place: slice | int) -> NDArray[np.bool_]:
        changed = x.clone()
        changed[place] += 1
        after = as_array(call(answer, changed, taps, bias), shape, "the convolution")
        result: NDArray[np.bool_] = np.abs(after - before) > 1e-5
        return result

    everything = slice(None)
    if shape[1] > 1 and moved(everything, -1)[:, :-1].any():
        return "the future leaks in: changing the last token changes an output before it"
    if shape[2] > 1 and moved(everything, everything, 0)[:, :, 1:].any():
        return "the channels mix: depth-wise means that channel c sees only channel c (groups=e)"
    if moved(0)[1:].any():
        return "the sequences of the batch mix"
    if moved(everything, 0)[:, width:].any():
        return f"the window is too long: token {width} must not see token 0 with {width} taps"
    if shape[1] >= width and not moved(everything, 0)[:, width - 1].any():
        return f"the window is too short: token {width - 1} must see token 0 with {width} taps"
    return ""


def _convolved(x: Tensor, taps: Tensor, bias: Tensor, left: int) -> Array:
    """With `left` zeros before the first token, and after the last as many as the length then needs."""
    (b, length, e), width = x.shape, taps.shape[1]
    padded = torch.cat([x.new_zeros(b, left, e), x, x.new_zeros(b, width, e)], 1)
    parts = [taps[:, i] * padded[:, i : i + length] for i in range(width)]
    return plain(torch.stack(parts).sum(0) + bias)


def _along_channels(x: Tensor, taps: Tensor, bias: Tensor) -> Array:
    width = taps.shape[1]
    padded = F.pad(x, (width - 1, 0))
    parts = [taps[:, i] * padded[..., i : i + x.shape[2]] for i in range(width)]
    return plain(torch.stack(parts).sum(0) + bias)


_CONV = Check(
    reference=_right_conv,
    cases=_conv_cases,
    mistakes=_CONV_MISTAKES,
    parts=("the convolution",),
    praise="each channel looks back over its own taps, and no token sees a later one.",
    otherwise=lambda case, got, right: _first(got, right),
    probe=_probed,
    forbidden=[
        (convolutions, "the numbers are right, but torch's convolution made them: slices or a loop over taps do")
    ],
)


# Exercise 2


@dataclass(frozen=True)
class _Step:
    """One token through a Mamba block, in parts that a mistake can replace one at a time."""

    taps: Callable[[Tensor], Tensor] = lambda taps: taps
    conv_bias: float = 1.0
    activation: Callable[[Tensor], Tensor] = F.silu
    join: Callable[[Tensor, Tensor], Tensor] = lambda conv, x: torch.cat([conv, x[..., None]], -1)
    keep: Callable[[Tensor, Tensor], Tensor] = lambda window, u: window[..., 1:]
    step_bias: float = 1.0
    positive: Callable[[Tensor], Tensor] = F.softplus
    rate: Callable[[Tensor], Tensor] = lambda A_log: -A_log.exp()
    write: Callable[[Tensor, Tensor], Tensor] = lambda delta, u: delta * u
    swap: bool = False
    read_old: bool = False
    return_old: bool = False
    skip: float = 1.0
    skip_of: Callable[[Tensor, Tensor], Tensor] = lambda x, u: u
    skip_after: bool = False
    gate: Callable[[Tensor], Tensor] = F.silu
    branches: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda x, z: (x, z)

    def __call__(self, block: MambaBlock, token: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert block.conv1d is not None and block.conv1d.bias is not None
        x, z = self.branches(*block.in_proj(token).chunk(2, dim=-1))
        window = self.join(conv, x)
        u = self.activation(
            (window * self.taps(block.conv1d.weight[:, 0])).sum(-1) + self.conv_bias * block.conv1d.bias
        )
        low, B, C = block.x_proj(u).split([block.rank, block.state_size, block.state_size], -1)
        B, C = (C, B) if self.swap else (B, C)
        delta = self.positive(F.linear(low, block.dt_proj.weight) + self.step_bias * block.dt_proj.bias)
        decay = torch.exp(delta[..., None] * self.rate(block.A_log))
        new = decay * ssm + self.write(delta, u)[..., None] * B[:, None]
        skip = self.skip * block.D * self.skip_of(x, u)
        y = ((ssm if self.read_old else new) * C[:, None]).sum(-1) + (0 if self.skip_after else skip)
        gated = y * self.gate(z) + (skip if self.skip_after else 0)
        return block.out_proj(gated), self.keep(window, u), ssm if self.return_old else new


_RIGHT = _Step()
_STEP_MISTAKES: dict[str, Callable[..., Any]] = {
    "the taps are in reverse order: conv holds the oldest value first, and the token itself meets the last tap": (
        replace(_RIGHT, taps=lambda taps: taps.flip(-1))
    ),
    "the bias of the convolution is missing": replace(_RIGHT, conv_bias=0.0),
    "the SiLU after the convolution is missing": replace(_RIGHT, activation=lambda v: v),
    "conv does not move on: drop its oldest value and append the token's x": replace(
        _RIGHT, keep=lambda window, u: window[..., :-1]
    ),
    "conv keeps the wrong thing: it holds x before the convolution, not u after it": replace(
        _RIGHT, keep=lambda window, u: torch.cat([window[..., 1:-1], u[..., None]], -1)
    ),
    "conv comes back newest first: the oldest value belongs first": replace(
        _RIGHT, keep=lambda window, u: window[..., 1:].flip(-1)
    ),
    "the token's x is put before conv: the oldest value comes first, so the newest belongs at the end": replace(
        _RIGHT, join=lambda conv, x: torch.cat([x[..., None], conv], -1), keep=lambda window, u: window[..., :-1]
    ),
    "the new conv begins with the token's x: drop the oldest value in front and append x at the end": replace(
        _RIGHT, keep=lambda window, u: torch.cat([window[..., -1:], window[..., :-2]], -1)
    ),
    "the bias of dt_proj is added twice: block.dt_proj(...) adds it already": replace(_RIGHT, step_bias=2.0),
    "the bias of dt_proj is missing: it carries the first step sizes": replace(_RIGHT, step_bias=0.0),
    "the step sizes are not positive: softplus is missing": replace(_RIGHT, positive=lambda raw: raw),
    "A is used as A_log: it is -exp(A_log)": replace(_RIGHT, rate=lambda A_log: A_log),
    "A has the wrong sign: it is -exp(A_log), so that the state decays": replace(
        _RIGHT, rate=lambda A_log: A_log.exp()
    ),
    "the input enters without its step size: the state gains delta u B": replace(_RIGHT, write=lambda delta, u: u),
    "B and C are swapped: x_proj gives the step's numbers, then B, then C": replace(_RIGHT, swap=True),
    "off by one: the output reads the state before the token, it must read the new one": replace(_RIGHT, read_old=True),
    "the skip D u is missing": replace(_RIGHT, skip=0.0),
    "the skip takes x from before the convolution: it is D u, with u from after it": replace(
        _RIGHT, skip_of=lambda x, u: x
    ),
    "the ssm state comes back unchanged: return the new one, which the output has read": replace(
        _RIGHT, return_old=True
    ),
    "the skip is added after the gate: the gate closes on both, (C h + D u) silu(z)": replace(_RIGHT, skip_after=True),
    "the gate is z itself: it is silu(z)": replace(_RIGHT, gate=lambda z: z),
    "the gate is the sigmoid of z: it is silu(z), which is z sigmoid(z)": replace(_RIGHT, gate=torch.sigmoid),
    "the gate is missing": replace(_RIGHT, gate=torch.ones_like),
    "the branches are swapped: the first half of in_proj is x, the second the gate z": replace(
        _RIGHT, branches=lambda x, z: (z, x)
    ),
    "conv is read and kept newest first: the oldest value comes first": lambda *given: _newest_first(*given),
    "both states are taken for zero: go on from those that are given": (
        lambda block, token, conv, ssm: _RIGHT(block, token, 0 * conv, 0 * ssm)
    ),
}


def check_step(answer: Callable[..., Any]) -> None:
    """`answer(block, token (b, d), conv (b, e, w - 1), ssm (b, e, n))` must give one token's output and new states."""
    with torch.no_grad():
        _STEP(answer)


def _newest_first(block: MambaBlock, token: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out, conv, ssm = _RIGHT(block, token, conv.flip(-1), ssm)
    return out, conv.flip(-1), ssm


def _step_cases() -> list[Case]:
    """Steps from zero states, as of a first token, and from any others."""
    cases = []
    sizes = [(2, 20, 4, 2, 4), (3, 7, 5, 1, 3), (1, 17, 3, 2, 2), (5, 3, 2, 3, 6)]
    for seed, (b, d, n, expand, width) in enumerate(sizes):
        block = _block_off_its_start(seed, d, state_size=n, expand=expand, conv_width=width)
        (token,), zero = normal(seed, (b, d)), block.init_state(b)
        conv, ssm = normal(20 + seed, tuple(zero.conv.shape), tuple(zero.ssm.shape))
        cases.append((block, token, conv, ssm))
    block, token, conv, ssm = cases[1]
    return [*cases, (block, -2 * token, torch.zeros_like(conv), torch.zeros_like(ssm))]


def _block_off_its_start(seed: int, d: int, **sizes: int) -> MambaBlock:
    """A block in whose weights no mistake can hide: nothing is zero, one, or the same in every channel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = MambaBlock(d, **sizes)  # type: ignore[arg-type]
        block.to(torch.get_default_dtype())
        nn.init.normal_(block.D)
        nn.init.uniform_(block.dt_proj.bias, -2, 1)  # larger steps than at the start: memory shows in one token
        nn.init.uniform_(block.A_log, -1, 1)
        nn.init.normal_(block.in_proj.weight, std=0.4)
        nn.init.normal_(block.x_proj.weight, std=0.4)
    return block.requires_grad_(False)


_STEP = Check(
    reference=lambda block, token, conv, ssm: _RIGHT(block, token, conv, ssm),
    cases=_step_cases,
    mistakes=_STEP_MISTAKES,
    parts=("out", "conv", "ssm"),
    praise="one token's output and both states, as the block's own step gives them.",
    otherwise="the step differs from the block's own",
    forbidden=[
        (
            lambda: Calls(MambaBlock.step, MambaBlock.extend, selective_step),
            "the numbers are right, but the package's step made them: use the block's layers",
        )
    ],
)


# Exercise 3


def check_bias(answer: Callable[..., Any]) -> None:
    """`answer(share (e,))` must be the inverse softplus of step sizes log-uniform in `STEP_RANGE`, `(e,)`."""
    _BIAS(answer)


def _shares() -> list[Case]:
    cases: list[tuple[list[float], tuple[float, ...]]] = [
        ([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0], ()),
        ([0.83, 0.02, 0.4], (0.01, 0.5)),  # in no order
        ([0.3], (0.2, 2.0)),
        ([1.0, 0.0, 0.0, 0.6, 0.35], (0.004, 0.03)),
    ]
    return [(tensor(share), *bounds) for share, bounds in cases]


def _bias(share: Tensor, low: float = STEP_RANGE[0], high: float = STEP_RANGE[1]) -> Array:
    return np.asarray(np.log(np.expm1(_step_size(share, low, high))))


def _step_size(share: Tensor, low: float, high: float) -> Array:
    return np.asarray(low * (high / low) ** plain(share))


def _bias_mistakes(share: Tensor, low: float = STEP_RANGE[0], high: float = STEP_RANGE[1]) -> dict[str, Array]:
    part, step = plain(share), _step_size(share, low, high)
    linear = low + part * (high - low)
    bases = np.exp(np.log10(low) + part * np.log10(high / low))
    with np.errstate(invalid="ignore"):
        of_log = np.log(np.expm1(np.log(step)))
    return {
        "that is the step size itself: the bias is what softplus turns into it": step,
        "that is the logarithm of the step size: it inverts exp, not softplus": np.log(step),
        "that is softplus of the step size, not its inverse log(exp(step) - 1)": np.log1p(np.exp(step)),
        "the step sizes are uniform, not log-uniform: most would be near the upper end": np.log(np.expm1(linear)),
        "uniform instead of log-uniform, and the inverse of softplus is missing": linear,
        "the biases are uniform, not the logarithms of the step sizes: interpolate before the inverse of softplus": (
            (1 - part) * np.log(np.expm1(low)) + part * np.log(np.expm1(high))
        ),
        "low and high are swapped: share 0 stands for low": _bias(1 - share, low, high),
        "the logarithms have different bases: 10 ** with log10, or exp with log": np.log(np.expm1(bases)),
        "the bias is the inverse with the wrong sign: a small step needs a very negative bias": -np.log(np.expm1(step)),
        "low and high are ignored: with others the step sizes have to run between those": _bias(share),
        "high is ignored: with another one the step sizes have to run up to it": _bias(share, low),
        "the inverse of softplus is taken of the logarithm: the step size goes through it as it is": of_log,
    }


def _worst_step(bias: Array, step: Array) -> str:
    made = np.logaddexp(0, bias)
    worst = int(np.argmax(np.abs(np.log(made / step))))
    return f"softplus of the bias is {made[worst]:.4g} where a step of {step[worst]:.4g} was wanted"


_BIAS = Check(
    reference=_bias,
    cases=_shares,
    mistakes=_bias_mistakes,
    parts=("the bias",),
    praise=(
        f"softplus of the bias runs from {STEP_RANGE[0]} to {STEP_RANGE[1]}, and half of the channels lie below "
        f"{STEP_RANGE[0] ** 0.5 * STEP_RANGE[1] ** 0.5:g}."
    ),
    otherwise=lambda case, got, right: _worst_step(got, np.logaddexp(0, right)),
    tolerance=1e-3,
)


def _first(got: Array, expected: Array) -> str:
    wrong = np.flatnonzero(np.abs(got - expected).max((0, 2)) > 1e-4)
    return f"the output differs first at token {int(wrong[0]) if len(wrong) else 0}"
