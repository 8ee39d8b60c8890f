"""The multi-layer perceptron of a GPT-2 block."""

from __future__ import annotations

from torch import nn

from dmm.layers.initial import init_linear


class GeluMLP(nn.Sequential):
    """`L2(gelu(L1 x))` with the exact GELU and `4 d` channels between: `(b, l, d) -> (b, l, d)`.

    It starts as GPT-2's: `N(0, 0.02)`, biases zero.
    """

    def __init__(self, d: int):
        up, down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        super().__init__(up, nn.GELU(), down)
        init_linear(up)
        init_linear(down)
