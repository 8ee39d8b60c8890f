"""Whether torch watches the operations of a call, so that all of them must be operations that it knows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def watched(*tensors: Tensor | None) -> bool:
    """Whether torch follows these tensors, or whatever runs now, by other means than the gradients of `backward`.

    So it does while it exports, compiles or traces, within `vmap` and the other transforms of `torch.func`, in forward
    mode (`torch.autograd.forward_ad`), and with tensors and modes that take every operation themselves, such as fake
    tensors. A kernel that is called by its address would be left out then, without a word, and a gradient of our own
    serves none of this: the same must be computed in plain operations.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return True
    given = [t for t in tensors if t is not None]
    if forward_ad._current_level >= 0 and any(map(_has_tangent, given)):
        return True
    return any(type(t).__torch_dispatch__ is not Tensor.__torch_dispatch__ for t in given)


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
