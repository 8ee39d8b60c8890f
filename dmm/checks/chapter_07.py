"""Checks for chapter 7: the DMM block and model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dmm.checks import as_array, call, close, passed, require
from dmm.layers.local import DenseSequenceMixer
from dmm.layers.mamba import MambaBlock


def check_block(answer: Callable[..., Any]) -> None:
    """`answer(X (b, l, d), norm_1, dsm, norm_2, mamba)` must be equation 3 of the paper, `(b, l, d)`."""
    X, parts = _block_parts()
    Y = as_array(call(answer, X, *parts), tuple(X.shape), "Y")
    with torch.no_grad():
        expected, mistakes = _equation_3(X, *parts), _wrong_blocks(X, *parts)
    _match(Y, expected, mistakes, "Y is not equation 3; compare it line by line, beginning with x = LN(X)")
    passed("norm, dense mixing, norm, Mamba, each residual taken from the normalised tokens.")


def check_frame(answer: Callable[..., Any]) -> None:
    """`answer(R, s, a, mix)`, tokens `(b, k, d)` each: interleave, mix, outputs of the state tokens `(b, k, d)`."""
    b, k, d = 2, 4, 5
    R, s, a = torch.randn(3, b, k, d, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []

    def mix(x: Tensor) -> Tensor:
        require(tuple(getattr(x, "shape", ())) == (b, 3 * k, d), f"mix was given {_shape(x)}, expected {(b, 3 * k, d)}")
        seen.append(x.detach().clone())
        return x.cumsum(1)  # the simplest causal mixer

    result = call(answer, R, s, a, mix)
    require(bool(seen), "mix was not called: the blocks of the model stand between the tokens and the outputs")
    _match(
        seen[0].double().numpy(),
        torch.stack([R, s, a], 2).flatten(1, 2),
        _wrong_orders(R, s, a),
        "the tokens are not in the order R0, s0, a0, R1, s1, a1, ...",
    )
    require(_shape(result) != (b, 3 * k, d), "all tokens came back: keep the outputs of the state tokens only")
    mixed = mix(seen[0])
    _match(
        as_array(result, (b, k, d), "outputs"),
        mixed[:, 1::3],
        _wrong_outputs(mixed, s),
        "those are not the outputs at tokens 1, 4, 7, ...",
    )
    passed("return-to-go, state and action in turn, and an action is read off each state token.")


def check_count(answer: Callable[..., Any]) -> None:
    """`answer(state_size, action_size, width, layers, window)` must count the weights of the released MuJoCo model."""
    for sizes in ((4, 2, 40, 5, 3), (11, 3, 64, 3, 6), (17, 6, 32, 3, 6), (3, 1, 16, 1, 1)):
        got = call(answer, *sizes)
        require(
            not isinstance(got, bool) and isinstance(got, (int, float, np.number)), f"expected a number, got {got!r}"
        )
        expected, parts = _count(*sizes), _parts(*sizes)
        if got != expected:
            names = ("state_size", "action_size", "width", "layers", "window")
            shown = ", ".join(f"{name}={size}" for name, size in zip(names, sizes, strict=True))
            require(False, f"at {shown}: got {got:,}, {_wrong_count(got - expected, parts, *sizes)}")
    passed("123,587 for hopper, 34,150 for walker2d with 32 channels, and right at sizes you have not seen.")


def _block_parts() -> tuple[Tensor, tuple[nn.Module, ...]]:
    """Tokens far from normalised, and modules whose every weight matters."""
    d = 6
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norms = nn.LayerNorm(d), nn.LayerNorm(d)
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.normal_(norm.bias)
        dsm, mamba = DenseSequenceMixer(d, 4, bias=True), MambaBlock(d, state_size=4, conv_width=None)
        for layer in (mamba.in_proj, mamba.x_proj, mamba.out_proj):
            nn.init.normal_(layer.weight, std=0.5)
        X = 1 + 3 * torch.randn(2, 9, d)
    dtype = torch.get_default_dtype()
    parts: tuple[nn.Module, ...] = (norms[0], dsm, norms[1], mamba)
    return X.to(dtype), tuple(part.to(dtype) for part in parts)


Map = Callable[[Tensor], Tensor]


def _equation_3(X: Tensor, norm_1: Map, dsm: Map, norm_2: Map, mamba: Map) -> Tensor:
    x = norm_1(X)
    z = norm_2(x + dsm(x))
    return z + mamba(z)


def _wrong_blocks(X: Tensor, norm_1: Map, dsm: Map, norm_2: Map, mamba: Map) -> dict[str, Tensor]:
    x = norm_1(X)
    z, raw = x + dsm(x), X + dsm(x)
    zn = norm_2(z)
    plain, same, alone = X + dsm(X), norm_1(z), norm_2(dsm(x))
    return {
        "both residuals start from the raw input: that is the released code; equation 3 adds to LN(X) and LN(Z)": raw
        + mamba(norm_2(raw)),
        "the first residual starts from the raw input: equation 3 adds DSM(x) to x = LN(X)": norm_2(raw)
        + mamba(norm_2(raw)),
        "the second residual starts from Z: equation 3 adds Mamba's output to LN(Z)": z + mamba(zn),
        "the first norm is missing: the DSM reads x = LN(X), not X": norm_2(plain) + mamba(norm_2(plain)),
        "the second norm is missing: Mamba reads LN(Z), not Z": z + mamba(z),
        "the first norm is used twice: the block has two, with weights of their own": same + mamba(same),
        "the residual around the DSM is missing: Z = x + DSM(x)": alone + mamba(alone),
        "the residual around Mamba is missing: Y = LN(Z) + Mamba(LN(Z))": mamba(zn),
        "Mamba and DSM stand side by side: Mamba must read what the DSM has mixed": z + mamba(x),
        "the DSM comes last: equation 3 mixes locally first, so that the scan reads mixed tokens": _equation_3(
            X, norm_1, mamba, norm_2, dsm
        ),
    }


def _wrong_orders(R: Tensor, s: Tensor, a: Tensor) -> dict[str, Tensor]:
    b, k, d = s.shape

    def turns(*tokens: Tensor) -> Tensor:
        return torch.stack(tokens, 2).flatten(1, 2)

    across = torch.cat([R, s, a], -1).reshape(b, k, d, 3).transpose(2, 3)
    order = "the order in a time step is return-to-go, state, action; yours is"
    return {
        "all returns come first, then all states: stack along a new axis after time, then merge the two": torch.cat(
            [R, s, a], 1
        ),
        "channel for token: stacked along the last axis, so that each token mixes three modalities": torch.stack(
            [R, s, a], -1
        ).reshape(b, 3 * k, d),
        "channel for token: the reshape cuts across the channels": across.reshape(b, 3 * k, d),
        f"{order} state, return, action": turns(s, R, a),
        f"{order} state, action, return": turns(s, a, R),
        f"{order} return, action, state, a leak: the state token would see the action to be predicted": turns(R, a, s),
        "episodes are mixed: the reshape runs across the batch axis": torch.stack([R, s, a], 0).reshape(b, 3 * k, d),
        "time runs backwards": turns(R.flip(1), s.flip(1), a.flip(1)),
    }


def _wrong_outputs(mixed: Tensor, s: Tensor) -> dict[str, Tensor]:
    k, rule = s.shape[1], "the state tokens are every third one, from token 1 on"
    return {
        "those are the return-to-go tokens, one too early: they have not seen the state": mixed[:, ::3],
        "those are the action tokens, one too late: they have seen the action to be predicted": mixed[:, 2::3],
        f"those are the first k tokens: {rule}": mixed[:, :k],
        f"those are tokens 1 to k: {rule}": mixed[:, 1 : k + 1],
        f"those are the last k tokens: {rule}": mixed[:, -k:],
        "those are the tokens themselves, not what mix made of them": s,
    }


def _parts(s: int, a: int, d: int, layers: int, w: int) -> dict[str, int]:
    """The weights of the released MuJoCo model by part, one layer's where there are several."""
    rank = math.ceil(d / 16)
    mamba = 2 * d * d + d * (rank + 32) + (rank + 1) * d + 16 * d + d + d * d
    frame = 2 * d + (s + 1) * d + (a + 1) * d + (d + 1) * a
    return {"frame": frame, "norm": 2 * d, "dsm": w * d * d, "mamba": mamba}


def _count(s: int, a: int, d: int, layers: int, w: int) -> int:
    part = _parts(s, a, d, layers, w)
    return part["frame"] + 4 * part["norm"] + layers * (part["dsm"] + part["mamba"])


def _wrong_count(off: float, part: Mapping[str, int], s: int, a: int, d: int, layers: int, w: int) -> str:
    """What a count that is `off` too large most likely did."""
    rank, floor = math.ceil(d / 16), d // 16
    known = {
        2 * (layers - 1) * part["norm"]: "which has norms of its own in each layer: the code shares one pair",
        -(layers - 1) * part["dsm"]: "which has one DSM for all layers (table 4's model); here each layer has its own",
        layers * d: "which gives the DSM a bias: the code has none",
        layers * (w * d - w * d * d): "which counts a depth-wise DSM: dense means w d inputs for each of d outputs",
        layers * (w * d + d - w * d * d): "which counts a depth-wise convolution with bias in the DSM's place",
        layers * (d * d - w * d * d): "which leaves the window out: the DSM reads w tokens of d channels",
        -3 * d - a: "which forgets the biases of the embeddings and the head",
        -3 * d: "which forgets the biases of the embeddings",
        -a: "which forgets the head's bias",
        -part["norm"]: "which is one LayerNorm short: after the embedding, a pair for the layers, before the head",
        -4 * part["norm"]: "which forgets the LayerNorms: four of them, scale and shift",
        -4 * d: "which is 4 d short: two of the four LayerNorms, or the shifts of all (each has scale and shift)",
        layers * 5 * d: "which still has Mamba's convolution, 4 d weights and d biases: here it is left out",
        layers * (3 * d * d + d * (2 * rank + 50)): "this has expand 2, the released model expand 1",
        layers * 2 * d * (floor - rank) if floor != rank else 0: "in which d/16 is not rounded up for the step size",
        -layers * d: "which is d short in each layer: Mamba's D, or the bias of the step size",
        -layers * 16 * d: "which forgets Mamba's A, n = 16 numbers per channel",
    }
    known.pop(0, None)  # mistakes that make no difference at these sizes
    return known.get(int(off), f"{'too many' if off > 0 else 'too few'} by {abs(off):,}")


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _match(got: np.ndarray, expected: Tensor, mistakes: Mapping[str, Tensor], otherwise: str) -> None:
    """Says which known mistake `got` is, or `otherwise`, unless it equals `expected`."""
    if close(got, expected.detach().numpy(), 1e-4):
        return
    for hint, wrong in mistakes.items():
        require(not close(got, wrong.detach().numpy(), 1e-4), hint)
    require(False, otherwise)
