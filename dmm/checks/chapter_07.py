"""Checks for chapter 7: the DMM block and model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dmm.checks import require
from dmm.checks.calls import package
from dmm.checks.cases import normal
from dmm.checks.check import Case, Check
from dmm.layers.local import DenseSequenceMixer
from dmm.layers.mamba import MambaBlock

Array = NDArray[np.float64]
Map = Callable[[Tensor], Tensor]
Block = Callable[[Tensor, Map, Map, Map, Map], Tensor]
Layers = Sequence[tuple[Map, Map]]


def check_stack(answer: Callable[..., Any]) -> None:
    """`answer(X (b, l, d), norm_1, norm_2, layers)`: equation 3 for each `(dsm, mamba)` of `layers`, `(b, l, d)`."""
    with torch.no_grad():
        _STACK(answer)


def check_frame(answer: Callable[..., Any]) -> None:
    """`answer(R (b, k, d), s (b, k, d), a (b, k - 1, d), mix)`: outputs of the state tokens, `(b, k, d)`."""
    _FRAME(answer)


def check_count(answer: Callable[..., Any]) -> None:
    """`answer(state_size, action_size, width, layers, window)` must count the weights of the released MuJoCo model."""
    _COUNT(answer)


# A stack with one pair of norms


def _stacks() -> list[Case]:
    """Tokens far from normalised, and modules whose every weight matters: three layers, one, and two."""
    return [_stack_case(0, 2, 9, 6, 3), _stack_case(1, 1, 5, 7, 1), _stack_case(2, 3, 4, 5, 2)]


def _stack_case(seed: int, b: int, length: int, d: int, count: int) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norms = nn.LayerNorm(d), nn.LayerNorm(d)
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.normal_(norm.bias)
        layers = []
        for _ in range(count):
            mamba = MambaBlock(d, state_size=4, conv_width=None)
            for layer in (mamba.in_proj, mamba.x_proj, mamba.out_proj):
                nn.init.normal_(layer.weight, std=0.5)
            layers.append((DenseSequenceMixer(d, 4, bias=True), mamba))
        X = 1 + 3 * torch.randn(b, length, d)
    dtype = torch.get_default_dtype()
    return (
        X.to(dtype),
        norms[0].to(dtype),
        norms[1].to(dtype),
        [(dsm.to(dtype), mamba.to(dtype)) for dsm, mamba in layers],
    )


def _equation_3(X: Tensor, norm_1: Map, dsm: Map, norm_2: Map, mamba: Map) -> Tensor:
    x = norm_1(X)
    z = norm_2(x + dsm(x))
    return z + mamba(z)


def _stack(X: Tensor, norm_1: Map, norm_2: Map, layers: Layers, block: Block = _equation_3) -> Tensor:
    for dsm, mamba in layers:
        X = block(X, norm_1, dsm, norm_2, mamba)
    return X


def _of_blocks(block: Block) -> Callable[..., Tensor]:
    return lambda X, norm_1, norm_2, layers: _stack(X, norm_1, norm_2, layers, block)


def _of_layers(change: Callable[[Layers], Layers]) -> Callable[..., Tensor]:
    return lambda X, norm_1, norm_2, layers: _stack(X, norm_1, norm_2, change(layers))


def _released(X: Tensor, norm_1: Map, dsm: Map, norm_2: Map, mamba: Map) -> Tensor:
    raw = X + dsm(norm_1(X))
    return raw + mamba(norm_2(raw))


def _second_residual_raw(X: Tensor, norm_1: Map, dsm: Map, norm_2: Map, mamba: Map) -> Tensor:
    x = norm_1(X)
    z = x + dsm(x)
    return z + mamba(norm_2(z))


def _no_second_norm(X: Tensor, norm_1: Map, dsm: Map, norm_2: Map, mamba: Map) -> Tensor:
    x = norm_1(X)
    z = x + dsm(x)
    return z + mamba(z)


def _after(z: Tensor, mamba: Map) -> Tensor:
    return z + mamba(z)


def _side_by_side(X: Tensor, norm_1: Map, dsm: Map, norm_2: Map, mamba: Map) -> Tensor:
    x = norm_1(X)
    return x + dsm(x) + mamba(x)


def _normed_once(X: Tensor, norm_1: Map, norm_2: Map, layers: Layers) -> Tensor:
    x = norm_1(X)
    for dsm, mamba in layers:
        x = _after(norm_2(x + dsm(x)), mamba)
    return x


def _all_dsms_first(X: Tensor, norm_1: Map, norm_2: Map, layers: Layers) -> Tensor:
    for dsm, _ in layers:
        x = norm_1(X)
        X = norm_2(x + dsm(x))
    for _, mamba in layers:
        X = _after(X, mamba)
    return X


_STACK = Check(
    reference=_stack,
    cases=_stacks,
    mistakes={
        "both residuals start from the raw input: that is the released code; equation 3 adds to LN(X) and LN(Z)": (
            _of_blocks(_released)
        ),
        "the first residual starts from the raw input: equation 3 adds DSM(x) to x = LN(X)": _of_blocks(
            lambda X, norm_1, dsm, norm_2, mamba: _after(norm_2(X + dsm(norm_1(X))), mamba)
        ),
        "the second residual starts from Z: equation 3 adds Mamba's output to LN(Z)": _of_blocks(_second_residual_raw),
        "the first norm is missing: the DSM reads x = LN(X), not X": _of_blocks(
            lambda X, norm_1, dsm, norm_2, mamba: _after(norm_2(X + dsm(X)), mamba)
        ),
        "the second norm is missing: Mamba reads LN(Z), not Z": _of_blocks(_no_second_norm),
        "the first norm is used twice: the pair has two, with weights of their own": _of_blocks(
            lambda X, norm_1, dsm, norm_2, mamba: _equation_3(X, norm_1, dsm, norm_1, mamba)
        ),
        "the norms are swapped: norm_1 stands before the DSM": _of_blocks(
            lambda X, norm_1, dsm, norm_2, mamba: _equation_3(X, norm_2, dsm, norm_1, mamba)
        ),
        "the residual around the DSM is missing: Z = x + DSM(x)": _of_blocks(
            lambda X, norm_1, dsm, norm_2, mamba: _after(norm_2(dsm(norm_1(X))), mamba)
        ),
        "the residual around Mamba is missing: Y = LN(Z) + Mamba(LN(Z))": _of_blocks(
            lambda X, norm_1, dsm, norm_2, mamba: mamba(norm_2(norm_1(X) + dsm(norm_1(X))))
        ),
        "Mamba and DSM stand side by side: Mamba must read what the DSM has mixed": _of_blocks(_side_by_side),
        "the DSM comes last: equation 3 mixes locally first, so that the scan reads mixed tokens": _of_blocks(
            lambda X, norm_1, dsm, norm_2, mamba: _equation_3(X, norm_1, mamba, norm_2, dsm)
        ),
        "only the first layer is there: go through all of them": _of_layers(lambda layers: layers[:1]),
        "only the last layer's output came back: each layer reads what the one before it gave": (
            _of_layers(lambda layers: layers[-1:])
        ),
        "the layers are in reverse order": _of_layers(lambda layers: layers[::-1]),
        "the first layer is repeated: each layer has a DSM and a Mamba of its own": (
            _of_layers(lambda layers: [layers[0]] * len(layers))
        ),
        "only the first layer is normed at first: the pair of norms serves in every layer": _normed_once,
        "all DSMs come before all Mambas: a layer has one of each, one after the other": _all_dsms_first,
    },
    parts=("Y",),
    praise="norm, dense mixing, norm, Mamba, each residual from normalised tokens, layer after layer.",
    otherwise="Y is not equation 3, layer after layer; compare it line by line, beginning with x = LN(X)",
)


# From modalities to tokens and back, while acting


def _mix(x: Tensor, k: int) -> Tensor:
    """Causal, and unlike for each place, so that no two orders look alike. What no action follows may be padded."""
    shape = tuple(getattr(x, "shape", ()))
    tokens = 3 * k - 1
    complaint = f"mix was given {shape}, expected {tokens} tokens: three for each step but the newest, which has two"
    require(len(shape) == 3 and shape[1] in (tokens, tokens + 1), complaint)
    place = torch.arange(1.0, 1 + shape[1]).to(x)
    return (x * place[:, None].sqrt()).cumsum(1) / place[:, None]


def _histories() -> list[Case]:
    cases = []
    for seed, (b, k, d) in enumerate([(2, 4, 5), (3, 2, 7), (1, 1, 3), (2, 7, 3)]):
        R, s, a = normal(seed, *[(b, steps, d) for steps in (k, k, k - 1)])
        cases.append((R, s, a, partial(_mix, k=k)))
    return cases


def _tokens(*modalities: Tensor) -> Tensor:
    """Token by token in the given order, as far as the shortest reaches, then what the others have left."""
    steps = min(x.shape[1] for x in modalities)
    turns = torch.stack([x[:, :steps] for x in modalities], 2).flatten(1, 2)
    return torch.cat([turns, *(x[:, steps:] for x in modalities)], 1)


def _frame(R: Tensor, s: Tensor, a: Tensor, mix: Map) -> Tensor:
    return mix(_tokens(R, s, a))[:, 1::3]


def _channels_for_tokens(R: Tensor, s: Tensor, a: Tensor, mix: Map) -> Tensor:
    b, k, d = s.shape
    whole = torch.cat([a, a.new_zeros(b, 1, d)], 1)
    return mix(torch.stack([R, s, whole], -1).reshape(b, 3 * k, d))[:, 1::3]


def _across_the_batch(R: Tensor, s: Tensor, a: Tensor, mix: Map) -> Tensor:
    b, k, d = s.shape
    whole = torch.cat([a, a.new_zeros(b, 1, d)], 1)
    return mix(torch.stack([R, s, whole]).reshape(b, 3 * k, d))[:, 1::3]


def _earlier_actions(R: Tensor, s: Tensor, a: Tensor, mix: Map) -> Tensor:
    """The missing action stands in front, so that each step has the one before."""
    return mix(_tokens(R, s, torch.cat([torch.zeros_like(s[:, :1]), a], 1)))[:, 1::3]


_ORDER = "the order in a time step is return-to-go, state, action; yours is"
_RULE = "the state tokens are every third one, from token 1 on"

_FRAME = Check(
    reference=_frame,
    cases=_histories,
    mistakes={
        "all returns come first, then all states: stack along a new axis after time, then merge the two": (
            lambda R, s, a, mix: mix(torch.cat([R, s, a], 1))[:, 1::3]
        ),
        "channel for token: stacked along the last axis, so that each token mixes three modalities": (
            _channels_for_tokens
        ),
        "episodes are mixed: the reshape runs across the batch axis": _across_the_batch,
        f"{_ORDER} state, return, action": lambda R, s, a, mix: mix(_tokens(s, R, a))[:, ::3],
        f"{_ORDER} state, return, action, and the outputs are those of the returns": (
            lambda R, s, a, mix: mix(_tokens(s, R, a))[:, 1::3]
        ),
        f"{_ORDER} return, action, state, a leak: the state token would see the action to be predicted": (
            lambda R, s, a, mix: mix(_tokens(R, a, s))[:, [*range(2, 3 * s.shape[1] - 3, 3), -1]]
        ),
        "every action stands one step late: a[t] belongs behind the state of step t, which it was chosen in": (
            _earlier_actions
        ),
        "time runs backwards": lambda R, s, a, mix: mix(_tokens(R.flip(1), s.flip(1), a.flip(1)))[:, 1::3],
        "those are the return-to-go tokens, one too early: they have not seen the state": (
            lambda R, s, a, mix: mix(_tokens(R, s, a))[:, ::3]
        ),
        "those are the action tokens, one too late: they have seen the action to be predicted": (
            lambda R, s, a, mix: mix(_tokens(R, s, a))[:, 2::3]
        ),
        "only the newest output came back: one for each of the k states is asked for": (
            lambda R, s, a, mix: mix(_tokens(R, s, a))[:, -1]
        ),
        f"those are the first k tokens: {_RULE}": lambda R, s, a, mix: mix(_tokens(R, s, a))[:, : s.shape[1]],
        f"those are tokens 1 to k: {_RULE}": lambda R, s, a, mix: mix(_tokens(R, s, a))[:, 1 : s.shape[1] + 1],
        f"those are the last k tokens: {_RULE}": lambda R, s, a, mix: mix(_tokens(R, s, a))[:, -s.shape[1] :],
        "all tokens came back: keep the outputs of the state tokens only": lambda R, s, a, mix: mix(_tokens(R, s, a)),
        "those are the tokens themselves, not what mix made of them": lambda R, s, a, mix: s,
        "the newest step is missing: its state is the one that an action is wanted for": (
            lambda R, s, a, mix: mix(_tokens(R, s, a))[:, 1:-1:3]
        ),
    },
    parts=("outputs",),
    praise="return-to-go, state and action in turn, the newest step without its action, read off each state token.",
    otherwise="those are not the outputs at tokens 1, 4, 7, ... of R0, s0, a0, R1, s1, a1, ...",
)


# Count before you build


def _sizes() -> list[Case]:
    """Also widths that are no multiple of 16, on either side of the middle between two."""
    return [
        (4, 2, 40, 5, 3),
        (11, 3, 64, 3, 6),
        (17, 6, 32, 3, 6),
        (3, 1, 16, 1, 1),
        (5, 7, 20, 2, 4),
        (29, 8, 100, 4, 7),
    ]


def _parts(s: int, a: int, d: int, layers: int, w: int) -> dict[str, int]:
    """The weights of the released MuJoCo model by part, one layer's where there are several."""
    rank = math.ceil(d / 16)
    mamba = 2 * d * d + d * (rank + 32) + (rank + 1) * d + 16 * d + d + d * d
    frame = 2 * d + (s + 1) * d + (a + 1) * d + (d + 1) * a
    return {"frame": frame, "norm": 2 * d, "dsm": w * d * d, "mamba": mamba}


def _count(state_size: int, action_size: int, width: int, layers: int, window: int) -> int:
    part = _parts(state_size, action_size, width, layers, window)
    return part["frame"] + 4 * part["norm"] + layers * (part["dsm"] + part["mamba"])


def _wrong_counts(s: int, a: int, d: int, layers: int, w: int) -> dict[str, int]:
    """What typical slips make of the count."""
    part, rank = _parts(s, a, d, layers, w), math.ceil(d / 16)
    off = {
        "each layer has norms of its own: the code shares one pair": 2 * (layers - 1) * part["norm"],
        "one DSM for all layers, as in table 4's model: here each layer has its own": -(layers - 1) * part["dsm"],
        "the DSM has a bias: the code has none": layers * d,
        "the DSM is depth-wise: dense means w d inputs for each of d outputs": layers * (w * d - w * d * d),
        "a depth-wise convolution with bias stands in the DSM's place": layers * (w * d + d - w * d * d),
        "the window is left out: the DSM reads w tokens of d channels": layers * (d * d - w * d * d),
        "the window is in steps, of three tokens each: it counts tokens": 2 * layers * part["dsm"],
        "the biases of the embeddings and the head are forgotten": -3 * d - a,
        "the biases of the embeddings are forgotten": -3 * d,
        "the head's bias is forgotten": -a,
        "one LayerNorm is missing: after the embedding, a pair for the layers, before the head": -part["norm"],
        "the LayerNorms are forgotten: four of them, scale and shift": -4 * part["norm"],
        "4 d are missing: two of the four LayerNorms, or the shifts of all (each has scale and shift)": -4 * d,
        "Mamba's convolution is still there, 4 d weights and d biases: here it is left out": layers * 5 * d,
        "this has expand 2, the released model expand 1": layers * (3 * d * d + d * (2 * rank + 50)),
        "d/16 is rounded down for the step size: it is rounded up": layers * 2 * d * (d // 16 - rank),
        "d/16 is rounded to the nearest for the step size: it is rounded up": layers
        * 2
        * d
        * (int(d / 16 + 0.5) - rank),
        "the rank of the step size is 4 at every width: it is d/16, rounded up": layers * 2 * d * (4 - rank),
        "d is missing in each layer: Mamba's D, or the bias of the step size": -layers * d,
        "Mamba's A is forgotten, n = 16 numbers per channel": -layers * 16 * d,
        "the layers are counted once: each has weights of its own": -(layers - 1) * (part["dsm"] + part["mamba"]),
    }
    right = _count(s, a, d, layers, w)
    return {hint: right + difference for hint, difference in off.items()}


def _off_by(case: Case, got: Array, right: Array) -> str:
    off = float(got - right)
    return f"{'too many' if off > 0 else 'too few'} by {abs(off):,.10g}"


_COUNT = Check(
    reference=_count,
    cases=_sizes,
    mistakes=_wrong_counts,
    parts=("the count",),
    praise="123,587 for hopper, 34,150 for walker2d with 32 channels, and right at sizes you have not seen.",
    otherwise=_off_by,
    tolerance=1e-9,
    forbidden=[(package, "the number is right, but a model was built for it: count with arithmetic only")],
)
