"""Layers that can be told that their weights do not change any more, for acting."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Freezable(nn.Module):
    """A layer whose steps are done by a cell: an object that holds what steps have in common.

    A cell is made for each step, with the weights of then; once the layer is frozen, there is one for all.
    """

    _frozen: Any = None

    def make_cell(self) -> Any:
        """A cell with the weights of now."""
        raise NotImplementedError

    def cell_of_now(self) -> Any:
        """The frozen cell, or a new one."""
        return self._frozen or self.make_cell()

    @torch.no_grad()
    def freeze(self) -> None:
        """Work out once what all steps have in common. The weights must not change then."""
        self._frozen = self.make_cell()

    def _apply(self, *arguments: Any, **keywords: Any) -> Any:
        """Other dtypes and devices (`double`, `to`) make other weights, which are not frozen."""
        self._frozen = None
        return super()._apply(*arguments, **keywords)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a stored layer, is not frozen: what is worked out belongs to the weights of the original."""
        return self.__dict__ | {"_frozen": None}
