"""Whether torch watches the operations of a call, so that all of them must be operations that it knows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def watched(*tensors: Tensor | None) -> bool:
    """Whether torch follows these tensors, or whatever runs now, by other means than the gradients of `backward`.

    So it does while it exports, compiles or traces, within `vmap` and the other transforms of `torch.func`, in forward
    mode (`torch.autograd.forward_ad`), and with tensors and modes of its own that take every operation themselves, such
    as fake tensors. A kernel that is called by its address would be left out then, without a word, and a gradient of
    our own serves none of this: the same must be computed in plain operations. A mode that only looks on, to count what
    runs, changes nothing; a kernel is no operation to it.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    if torch._C._are_functorch_transforms_active() or any(map(_in_force, _MODES)):
        return True
    given = [t for t in tensors if t is not None]
    if forward_ad._current_level >= 0 and any(map(_has_tangent, given)):
        return True
    return any(type(t).__torch_dispatch__ is not Tensor.__torch_dispatch__ for t in given)


_MODES = tuple(torch._C._TorchDispatchModeKey.__members__.values())  # type: ignore[attr-defined]


def _in_force(mode: object) -> bool:
    return torch._C._get_dispatch_mode(mode) is not None  # type: ignore[arg-type]


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
