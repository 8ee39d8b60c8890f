"""The frame that most models share: embeddings, interleaved tokens, causal blocks, a head on the state token.

`TokenPolicy` is the frame of Decision Transformer and its successors: one linear embedding per modality, tokens
interleaved as return-to-go, state, action, a stack of blocks, and a head that reads the action off the state token.
Axes: `b` batch, `k` time steps, `l = 3k` tokens, `d` channels, `s` state size, `a` action size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dmm.configs import check_positive, plain_fields
from dmm.data.windows import Windows
from dmm.errors import InputError, require_choice
from dmm.layers.dropout import Dropout
from dmm.layers.initial import init_linear
from dmm.policy import Policy

Padding = Literal["zeros", "released"]
RELEASED_ACTION_PADDING = -10.0
"""What the released code (and Decision Transformer's) writes into the actions of padded steps while training."""


@dataclass(frozen=True, kw_only=True)
class TokenPolicyConfig:
    """What every model of the shared frame needs to know."""

    state_size: int  # s
    action_size: int  # a, continuous and within [-1, 1]
    context: int = 8  # k time steps, 3k tokens
    width: int = 64  # d channels
    layers: int = 3
    dropout: float = 0.1  # after the embedding
    rtg_scale: float = 1000.0  # returns-to-go are divided by this
    padding: Padding = "zeros"  # what stands in padded steps: zeros, or what the released code puts there (see `embed`)

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(self, "state_size", "action_size", "context", "width", "layers")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: got {self.dropout:g}, allowed is 0 <= dropout < 1")
        if not 0 < self.rtg_scale < float("inf"):
            raise InputError(f"rtg_scale: got {self.rtg_scale:g}, allowed is a positive number")
        require_choice("padding", self.padding, Padding)


class TokenPolicy(Policy):
    """Embeddings, interleaving, blocks, norm and head: `Windows (b, k, ...) -> actions (b, k, a)`.

    Sub-classes fill `self.blocks`, modules that map tokens `(b, 3k, d)` to `(b, 3k, d)` causally. There is neither a
    position embedding nor an attention mask: causal blocks see the order, and padding comes first.

    Source: the released DMM code, which takes this frame from Decision Convformer and Decision Transformer. Its
    embedding is followed by LayerNorm and dropout; its head is a linear map of the state token through tanh.
    """

    def __init__(self, config: TokenPolicyConfig):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config, d = config, config.width
        self.embed_rtg = nn.Linear(1, d)
        self.embed_state = nn.Linear(config.state_size, d)
        self.embed_action = nn.Linear(config.action_size, d)
        self.embed_norm = nn.LayerNorm(d)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList()
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, config.action_size)
        for layer in (self.embed_rtg, self.embed_state, self.embed_action, self.head):
            init_linear(layer)

    def embed(self, windows: Windows) -> Tensor:
        """Tokens `(b, 3k, d)`: return-to-go, state and action of each time step in turn, before LayerNorm.

        With `padding = "released"` and while training, padded steps hold the z-score of an all-zero state and actions
        of -10, as in the released code; otherwise, and whenever the model is evaluated, they are zeros.
        """
        real = windows.mask[..., None]
        rtg = windows.returns_to_go / self.config.rtg_scale * real
        states, actions = (windows.states - self.state_mean) / self.state_std, windows.actions
        if not (self.training and self.config.padding == "released"):
            states, actions = states * real, actions * real
        else:
            actions = torch.where(real, actions, RELEASED_ACTION_PADDING)
        tokens = torch.stack([self.embed_rtg(rtg), self.embed_state(states), self.embed_action(actions)], dim=2)
        return tokens.flatten(1, 2)  # (b, k, 3, d) -> (b, 3k, d)

    def forward(self, windows: Windows) -> Tensor:
        return self.decode(self.embed(windows), windows)

    def decode(self, tokens: Tensor, windows: Windows) -> Tensor:
        """What follows the embedding: tokens `(b, 3k, d)` of these windows -> actions `(b, k, a)`."""
        x = self.mix(self.dropout(self.embed_norm(tokens)), windows)
        return torch.tanh(self.head(self.norm(x)[:, 1::3]))  # the state tokens (b, k, d) -> (b, k, a)

    def newest(self, windows: Windows) -> Tensor:
        """`forward` at the last step alone, `(b, a)`: without what only other tokens' outputs need.

        A causal block does not see the last token, an action that is not known, in the state token before it.
        """
        block: Any = self.blocks[-1] if len(self.blocks) else None
        own = all(getattr(type(self), name) is getattr(TokenPolicy, name) for name in ("forward", "decode", "mix"))
        if not own or not hasattr(block, "newest") or block._forward_hooks or block._forward_pre_hooks:
            return super().newest(windows)
        x = self.dropout(self.embed_norm(self.embed(windows)[:, :-1]))
        for before in self.blocks[:-1]:
            x = before(x)
        return torch.tanh(self.head(self.norm(block.newest(x))))

    def mix(self, x: Tensor, windows: Windows) -> Tensor:
        """The blocks: `(b, 3k, d) -> (b, 3k, d)`."""
        for block in self.blocks:
            x = block(x)
        return x
