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

from dmm.checks import as_array, call, close, match, passed, require
from dmm.layers.mamba import STEP_RANGE, MambaBlock

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
    # as many channels as taps, so that mixing the two up gives wrong numbers rather than an error
    (b, length, e), width = (2, 7, 4), 4
    x, taps, bias = _random(0, (b, length, e), (e, width), (e,))
    result = call(answer, x, taps, bias)
    shape = tuple(getattr(result, "shape", ()))
    require(
        shape != (b, length - width + 1, e),
        f"{width - 1} tokens are missing: pad with {width - 1} zeros before the first token",
    )
    require(
        shape != (b, length + width - 1, e),
        f"{width - 1} tokens too many: padded on both sides, then cut the last {width - 1} off",
    )
    require(shape != (b, e, length), "the axes are swapped: return (b, l, e), tokens before channels")
    v = as_array(result, (b, length, e), "the convolution")
    expected = _convolved(x, taps, bias, left=width - 1)
    if not close(v, expected, 1e-4):
        match(v, expected, _conv_mistakes(x, taps, bias), _probed(answer, x, taps, bias) or _first(v, expected))
    passed("each channel looks back over its own taps, and no token sees a later one.")


def _conv_mistakes(x: Tensor, taps: Tensor, bias: Tensor) -> dict[str, Array]:
    left = taps.shape[1] - 1
    repeated = torch.cat([x[:, :1].expand(-1, left, -1), x], 1)
    return {
        "the future leaks in: the zeros belong before the first token, not after the last": (
            _convolved(x, taps, bias, left=0)
        ),
        **{
            f"the future leaks in: the zeros are on both sides, with {before} of {left} before the first token": (
                _convolved(x, taps, bias, left=before)
            )
            for before in range(1, left)
        },
        "off by one: the last tap belongs to the token itself, here it meets the token before it": (
            _convolved(x, taps, bias, left=left + 1)
        ),
        "the taps are in reverse order: the first tap meets the oldest token, the last the token itself": (
            _convolved(x, taps.flip(1), bias, left=left)
        ),
        "channel for tap: taps is (e, w), one row per channel": _convolved(x, taps.T, bias, left=left),
        "channel for token: the convolution runs along the channels, it must run along the tokens": (
            _along_channels(x, taps, bias)
        ),
        "the bias is missing": _convolved(x, taps, torch.zeros_like(bias), left=left),
        "the padding repeats the first token: before it there is nothing, so zeros": (
            _convolved(repeated, taps, bias, left=left)[:, left:]
        ),
    }


def _probed(answer: Callable[..., Any], x: Tensor, taps: Tensor, bias: Tensor) -> str:
    """What a wrong convolution depends on though it must not, found by changing one thing at a time."""
    shape, width = tuple(x.shape), taps.shape[1]
    before = as_array(call(answer, x, taps, bias), shape, "the convolution")

    def moved(*place: slice | int) -> NDArray[np.bool_]:
        changed = x.clone()
        changed[place] += 1
        after = as_array(call(answer, changed, taps, bias), shape, "the convolution")
        result: NDArray[np.bool_] = np.abs(after - before) > 1e-5
        return result

    everything = slice(None)
    if moved(everything, -1)[:, :-1].any():
        return "the future leaks in: changing the last token changes an output before it"
    if moved(everything, everything, 0)[:, :, 1:].any():
        return "the channels mix: depth-wise means that channel c sees only channel c (groups=e)"
    if moved(0)[1:].any():
        return "the sequences of the batch mix"
    if moved(everything, 0)[:, width:].any():
        return f"the window is too long: token {width} must not see token 0 with {width} taps"
    if not moved(everything, 0)[:, width - 1].any():
        return f"the window is too short: token {width - 1} must see token 0 with {width} taps"
    return ""


def _convolved(x: Tensor, taps: Tensor, bias: Tensor, left: int) -> Array:
    """With `left` zeros before the first token, and after the last as many as the length then needs."""
    (b, length, e), width = x.shape, taps.shape[1]
    padded = torch.cat([x.new_zeros(b, left, e), x, x.new_zeros(b, width, e)], 1)
    parts = [taps[:, i] * padded[:, i : i + length] for i in range(width)]
    result: Array = (torch.stack(parts).sum(0) + bias).double().numpy()
    return result


def _along_channels(x: Tensor, taps: Tensor, bias: Tensor) -> Array:
    width = taps.shape[1]
    padded = F.pad(x, (width - 1, 0))
    parts = [taps[:, i] * padded[..., i : i + x.shape[2]] for i in range(width)]
    result: Array = (torch.stack(parts).sum(0) + bias).double().numpy()
    return result


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
_STEP_MISTAKES = {
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
}


def check_step(answer: Callable[..., Any]) -> None:
    """`answer(block, token (b, d), conv (b, e, w - 1), ssm (b, e, n))` must give one token's output and new states."""
    block, tokens = _block_off_its_start(), _random(1, (2, 6, 20))[0]
    with torch.no_grad():
        got = _run(answer, block, tokens)
        expected = _run(_RIGHT, block, tokens)
        mistakes = {hint: _run(wrong, block, tokens) for hint, wrong in _STEP_MISTAKES.items()}
    where = next((t for t in range(6) if not close(got[0][:, t], expected[0][:, t], 1e-4)), None)
    if where is None:
        newest_first = close(got[1], expected[1][..., ::-1], 1e-4)
        require(not newest_first, "the outputs are right, but conv holds its newest value first: put the oldest first")
        # all outputs agree: what is left to be wrong is the state after the last token
        require(close(got[1], expected[1], 1e-4), "conv after the last token is wrong, though no output shows it yet")
        require(close(got[2], expected[2], 1e-4), "ssm after the last token is wrong, though no output shows it yet")
    else:
        for parts in (3, 1):  # two mistakes may share their outputs and differ in the states
            for hint, wrong in mistakes.items():
                same = all(close(mine, other, 1e-4) for mine, other in zip(got[:parts], wrong, strict=False))
                require(not same, hint)
        first = "the first token's output is wrong, when both states are still zero: look at what needs no memory"
        later = f"token {where} is the first with a wrong output: look at what is carried over in conv and ssm"
        require(False, first if where == 0 else later)
    passed("six steps give what the block gives in one pass.")


def _block_off_its_start() -> MambaBlock:
    """A block in whose weights no mistake can hide: nothing is zero, one, or the same in every channel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = MambaBlock(20, state_size=4).to(torch.get_default_dtype())
        nn.init.normal_(block.D)
        nn.init.uniform_(block.dt_proj.bias, -2, 1)  # larger steps than at the start: memory shows in few tokens
        nn.init.uniform_(block.A_log, -1, 1)
        nn.init.normal_(block.in_proj.weight, std=0.4)
        nn.init.normal_(block.x_proj.weight, std=0.4)
    return block.requires_grad_(False)


def _run(step: Callable[..., Any], block: MambaBlock, tokens: Tensor) -> tuple[Array, Array, Array]:
    """Outputs `(b, l, d)` and the last states of a step applied from zero states, each with its shape checked."""
    conv, ssm = block.init_state(len(tokens))
    shapes = {"out": tokens[:, 0].shape, "conv": conv.shape, "ssm": ssm.shape}
    outputs = []
    for token in tokens.unbind(1):
        before = (conv.clone(), ssm.clone())
        result = call(step, block, token, conv, ssm)
        require(
            isinstance(result, tuple | list) and len(result) == 3,
            "return three things: out, the new conv and the new ssm",
        )
        arrays = {
            name: as_array(part, tuple(shape), name) for (name, shape), part in zip(shapes.items(), result, strict=True)
        }
        kept = torch.equal(conv, before[0]) and torch.equal(ssm, before[1])
        require(kept, "the old state was changed in place: make a new one and leave the old as it was")
        outputs.append(arrays["out"])
        conv, ssm = (torch.as_tensor(part) for part in result[1:])
    return np.stack(outputs, 1), arrays["conv"], arrays["ssm"]


# Exercise 3


def check_bias(answer: Callable[..., Any]) -> None:
    """`answer(share (e,))` must be the inverse softplus of step sizes log-uniform in `STEP_RANGE`, `(e,)`."""
    share = np.array([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
    shares = torch.tensor(share, dtype=torch.get_default_dtype())
    low, high = STEP_RANGE
    bias = as_array(call(answer, shares), share.shape, "the bias")
    _judge_bias(bias, share, low, high)
    other = as_array(call(answer, shares, 0.01, 0.5), share.shape, "the bias for low=0.01 and high=0.5")
    ignored = f"low and high are ignored: with 0.01 and 0.5 the step sizes still run from {low} to {high}"
    require(not close(other, bias, 1e-3), ignored)
    _judge_bias(other, share, 0.01, 0.5)
    passed(
        f"softplus of the bias runs from {low} to {high}, and half of the channels lie below {low**0.5 * high**0.5:g}."
    )


def _judge_bias(bias: Array, share: Array, low: float, high: float) -> None:
    step = low * (high / low) ** share
    linear = low + share * (high - low)
    reverse = step[::-1]
    mistakes = {
        "that is the step size itself: the bias is what softplus turns into it": step,
        "that is the logarithm of the step size: it inverts exp, not softplus": np.log(step),
        "that is softplus of the step size, not its inverse log(exp(step) - 1)": np.log1p(np.exp(step)),
        "the step sizes are uniform, not log-uniform: most would be near the upper end": np.log(np.expm1(linear)),
        "uniform instead of log-uniform, and the inverse of softplus is missing": linear,
        "low and high are swapped: share 0 stands for low": np.log(np.expm1(reverse)),
        "the logarithms have different bases: 10 ** with log10, or exp with log": np.log(
            np.expm1(np.exp(np.log10(low) + share * np.log10(high / low)))
        ),
        "the bias is the inverse with the wrong sign: a small step needs a very negative bias": -np.log(np.expm1(step)),
    }
    expected = np.log(np.expm1(step))
    match(bias, expected, mistakes, _worst_step(bias, step), 1e-3)


def _worst_step(bias: Array, step: Array) -> str:
    made = np.logaddexp(0, bias)
    worst = int(np.argmax(np.abs(np.log(made / step))))
    return f"softplus of the bias is {made[worst]:.4g} where a step of {step[worst]:.4g} was wanted"


def _random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _first(got: Array, expected: Array) -> str:
    wrong = np.flatnonzero(np.abs(got - expected).max((0, 2)) > 1e-4)
    return f"the output differs first at token {int(wrong[0]) if len(wrong) else 0}"
