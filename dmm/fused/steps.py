"""The branches without gradients (`steps.h`): of whole windows, and a few tokens at a time from a state.

`branch_step` computes a branch of whole windows with the weights of now. A `Cell` is for acting: it takes tokens a few
at a time, with the weights of when it was made, which it keeps in the order that the kernel reads them in. Outputs are
those of the modules to the rounding of float arithmetic; where the kernel cannot serve, the modules themselves go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from dmm.fused.kernel import Sizes, call, packed, pointer
from dmm.layers.local import DenseSequenceMixer
from dmm.layers.mamba import MambaBlock, MambaState

Weights = list[Tensor | None]


def branch_step(norm: nn.LayerNorm, mixer: nn.Module, x: Tensor, normalized: bool, newest: bool = False) -> Tensor:
    """`(LN(x) if normalized else x) + mixer(LN(x))`: `(b, l, d) -> (b, l, d)`, without a gradient.

    With `newest`, of a Mamba block, that of the last token alone, `(b, d)`.
    """
    x, (b, length, d) = x.contiguous(), x.shape
    sizes, weights = _weights(norm, mixer, normalized)
    sizes.b, sizes.l = b, length
    if isinstance(mixer, MambaBlock):
        sizes.newest, sizes.rows = newest, b
        y = x.new_empty((b, d) if newest else x.shape)
        call("mamba_step", sizes, x, *weights, *5 * [None], y)  # no states, all tokens present
    else:
        y = x.new_empty(x.shape)
        call("dense_step", sizes, x, *weights, *3 * [None], y)
    return y


def _weights(norm: nn.LayerNorm, mixer: nn.Module, normalized: bool) -> tuple[Sizes, Weights]:
    """The sizes of the branch and its weights in the kernel's order, contiguous."""
    size, sizes = norm.normalized_shape[0], Sizes(normalized=normalized, eps=norm.eps)
    weights: Weights
    if isinstance(mixer, MambaBlock):
        conv, conv_bias = (None, None) if mixer.conv1d is None else (mixer.conv1d.weight, mixer.conv1d.bias)
        sizes.d, sizes.e, sizes.n, sizes.r = size, mixer.inner, mixer.state_size, mixer.rank
        sizes.k = 1 if conv is None else conv.shape[-1]
        selection = [mixer.dt_proj.weight, mixer.dt_proj.bias, -torch.exp(mixer.A_log), mixer.D]
        inputs = mixer.in_proj.weight.chunk(2)  # of the scan, of the gate
        weights = [*inputs, conv, conv_bias, mixer.x_proj.weight, *selection, mixer.out_proj.weight]
    else:
        mixer = cast(DenseSequenceMixer, mixer)
        sizes.d, sizes.w, weights = size, mixer.window, [mixer.linear.weight, mixer.linear.bias]
    return sizes, [None if each is None else each.contiguous() for each in (norm.weight, norm.bias, *weights)]


class Cell:
    """What takes the tokens of a layer, or of one branch of it, a few at a time.

    Args:
        layer: a module with `extend`, see `dmm.layers.mamba.MambaBlock.extend`.
    """

    def __init__(self, layer: Any):
        self.layer = layer

    def extend(self, x: Tensor, state: Any, present: Tensor | None = None) -> tuple[Tensor, Any]:
        """The next `t` tokens: `(b, t, d)`, state -> `(b, t, d)`, new state."""
        return self.layer.extend(x, state, present)  # type: ignore[no-any-return]

    def newest(self, x: Tensor, state: Any, present: Tensor | None, rows: slice) -> tuple[Tensor, Any]:
        """The same, if of the output only the last token of some rows is wanted, `(rows, d)`."""
        y, state = self.extend(x, state, present)
        return y[rows, -1], state


class Chain(Cell):
    """Cells one behind the other; `join` makes one state of theirs."""

    def __init__(self, cells: list[Cell], join: Callable[..., Any]):
        self.cells, self.join = cells, join

    def extend(self, x: Tensor, state: Any, present: Tensor | None = None) -> tuple[Tensor, Any]:
        after = []
        for cell, own in zip(self.cells, state, strict=True):
            x, own = cell.extend(x, own, present)
            after.append(own)
        return x, self.join(*after)

    def newest(self, x: Tensor, state: Any, present: Tensor | None, rows: slice) -> tuple[Tensor, Any]:
        *before, last = state
        after = []
        for cell, own in zip(self.cells, before, strict=False):
            x, own = cell.extend(x, own, present)
            after.append(own)
        y, own = self.cells[-1].newest(x, last, present, rows)
        return y, self.join(*after, own)


class BranchCell(Cell):
    """A branch `(LN(x) if normalized else x) + mixer(LN(x))` in its modules."""

    def __init__(self, norm: nn.Module, mixer: nn.Module, normalized: bool):
        self.norm, self.mixer, self.normalized = norm, cast(Any, mixer), normalized

    def extend(self, x: Tensor, state: Any, present: Tensor | None = None) -> tuple[Tensor, Any]:
        normed = self.norm(x)
        y, state = self.mixer.extend(normed, state, present)
        return (normed if self.normalized else x) + y, state


class _FusedCell(BranchCell):
    """A branch in the kernel; `serves` says for which tokens and states it can be, all others go to the modules."""

    factors: tuple[int, ...]
    """Which of the weights are factors of products."""

    def __init__(self, norm: nn.LayerNorm, mixer: nn.Module, normalized: bool, serves: Callable[..., bool]):
        super().__init__(norm, mixer, normalized)
        self.serves = serves
        with torch.no_grad():
            self.sizes, self.weights = _weights(norm, mixer, normalized)
            for place in self.factors:
                self.weights[place] = packed(cast(Tensor, self.weights[place]))
        self.sizes.packed = 1
        self.pointers = [pointer(each) for each in self.weights]

    def _sized(self, x: Tensor, rows: slice | None = None) -> Sizes:
        sizes = Sizes.from_buffer_copy(self.sizes)  # threads may share a cell
        sizes.b, sizes.l, _ = x.shape
        if rows is not None:
            sizes.newest, sizes.first, sizes.rows = 1, rows.start, rows.stop - rows.start
        return sizes

    def _fit(self, x: Tensor, states: tuple[Tensor, ...], shapes: tuple[tuple[int, ...], ...]) -> bool:
        alike = all(each.dtype == x.dtype and each.device == x.device for each in states)
        fits = x.shape[2:] == (self.sizes.d,) and alike and all(map(_has_shape, states, shapes))
        return fits and self.serves(self.weights[0], x, *states)


def _has_shape(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    return tensor.shape == shape


class DenseCell(_FusedCell):
    """The branch of a Dense Sequence Mixer; its state is the tokens before, `(b, w - 1, d)`."""

    factors = (2,)

    def extend(self, x: Tensor, state: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self._fit(x, (state,), ((len(x), self.sizes.w - 1, self.sizes.d),)):
            return super().extend(x, state, present)
        x, y, last = x.contiguous(), x.new_empty(x.shape), state.new_empty(state.shape)
        call("dense_step", self._sized(x), x, *self.pointers, state.contiguous(), _marks(present, x), last, y)
        return y, last


class MambaBranchCell(_FusedCell):
    """The branch of a Mamba block; the parts of its state lie with their channels last."""

    factors = (2, 3, 6, 11)

    def extend(self, x: Tensor, state: MambaState, present: Tensor | None = None) -> tuple[Tensor, MambaState]:
        found = self._step(x, state, present, None)
        return super().extend(x, state, present) if found is None else found

    def newest(self, x: Tensor, state: MambaState, present: Tensor | None, rows: slice) -> tuple[Tensor, MambaState]:
        found = self._step(x, state, present, rows)
        return super().newest(x, state, present, rows) if found is None else found

    def _step(
        self, x: Tensor, state: MambaState, present: Tensor | None, rows: slice | None
    ) -> tuple[Tensor, MambaState] | None:
        z, b = self.sizes, len(x)
        if not self._fit(x, state, ((b, z.e, z.k - 1), (b, z.e, z.n))):
            return None
        x, conv, ssm = x.contiguous(), state.conv.mT.contiguous(), state.ssm.mT.contiguous()
        y = x.new_empty(x.shape if rows is None else (rows.stop - rows.start, z.d))
        after = (torch.empty_like(conv), torch.empty_like(ssm))
        call("mamba_step", self._sized(x, rows), x, *self.pointers, conv, ssm, _marks(present, x), *after, y)
        return y, MambaState(after[0].mT, after[1].mT)


def _marks(present: Tensor | None, x: Tensor) -> Tensor | None:
    return None if present is None else present.to(x).contiguous()
