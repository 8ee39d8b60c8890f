"""The frame that most models share: embeddings, interleaved tokens, causal blocks, a head on the state token.

`TokenPolicy` is the frame of Decision Transformer and its successors: one linear embedding per modality, tokens
interleaved as return-to-go, state, action, a stack of blocks, and a head that reads the action off the state token.
Models whose config is a `TimedConfig` add a learned table of the episode's time steps to all tokens of a step.
Axes: `b` batch, `k` time steps, `m` tokens of each, `l = m k`, `d` channels, `s` state size, `a` action size.
"""

from __future__ import annotations

from collections.abc import Mapping
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
Start = Literal["frame", "published"]
Tokens = tuple[str, ...]
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


@dataclass(frozen=True, kw_only=True)
class TimedConfig(TokenPolicyConfig):
    """The frame with an embedding of the episode's time steps, and a choice of how all of it starts.

    `published` is the start of Decision Transformer's code and of those that follow it: what is inside its GPT-2-like
    class `N(0, 0.02)` with biases of zero; embeddings and head as PyTorch starts them, the time table `N(0, 1)`.
    `frame` draws the embeddings, the time table and the head from `N(0, 0.02)` too.
    """

    max_timestep: int = 1000  # time steps that have an embedding; later ones share the last
    start: Start = "published"  # how embeddings, time table and head start

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "max_timestep")
        require_choice("start", self.start, Start)


class Shortening(nn.Module):
    """A block that can leave out what no action depends on if it is the last.

    Where the last block is one, training leaves it out, and the tokens behind the last state token too.
    """

    def at(self, x: Tensor, place: int, every: int) -> Tensor:
        """`forward`, of every so many tokens from that place on alone: `(b, l, d) -> (b, k, d)`."""
        raise NotImplementedError


class TokenPolicy(Policy):
    """Embeddings, interleaving, blocks, norm and head: `Windows (b, k, ...) -> actions (b, k, a)`.

    Sub-classes fill `self.blocks`, modules that map tokens `(b, l, d)` to `(b, l, d)` causally. There is neither a
    position embedding nor an attention mask: causal blocks see the order, and padding comes first.

    Source: the released DMM code, which takes this frame from Decision Convformer and Decision Transformer. Its
    embedding is followed by LayerNorm and dropout; its head is a linear map of the state token through tanh.
    """

    TOKENS: Tokens = ("rtg", "state", "action")
    """Of each time step, in order; a policy without action tokens has `("rtg", "state")`. Set before the frame's own
    `__init__`, which makes an embedding for each."""

    def __init__(self, config: TokenPolicyConfig):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config, d = config, config.width
        self.embed_rtg = nn.Linear(1, d)
        self.embed_state = nn.Linear(config.state_size, d)
        if "action" in self.TOKENS:
            self.embed_action = nn.Linear(config.action_size, d)
        self.embed_norm = nn.LayerNorm(d)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList()
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, config.action_size)
        timed = config if isinstance(config, TimedConfig) else None
        generic = timed is None or timed.start == "frame"
        if generic:
            for layer in (*self.embeddings().values(), self.head):
                init_linear(layer)
        self.embed_timestep = None if timed is None else nn.Embedding(timed.max_timestep, d)
        if self.embed_timestep is not None and generic:
            nn.init.normal_(self.embed_timestep.weight, std=0.02)

    def embeddings(self) -> dict[str, nn.Linear]:
        """The embedding of each of `TOKENS`, in order."""
        return {name: getattr(self, f"embed_{name}") for name in self.TOKENS}

    def embed(self, windows: Windows) -> Tensor:
        """Tokens `(b, l, d)`: those of each time step in turn, before LayerNorm.

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
        given = {"rtg": rtg, "state": states, "action": actions}
        tokens = torch.stack([layer(given[name]) for name, layer in self.embeddings().items()], dim=2)  # (b, k, m, d)
        x = tokens.flatten(1, 2)  # (b, l, d)
        if self.embed_timestep is None:
            return x
        last = self.embed_timestep.num_embeddings - 1
        time = self.embed_timestep(windows.timesteps.clamp(max=last))  # (b, k, d)
        return x + time.repeat_interleave(len(self.TOKENS), dim=1)  # type: ignore[no-any-return]

    def forward(self, windows: Windows) -> Tensor:
        return self.decode(self.embed(windows), windows)

    def decode(self, tokens: Tensor, windows: Windows) -> Tensor:
        """What follows the embedding: tokens `(b, l, d)` of these windows -> actions `(b, k, a)`."""
        place, every = self.TOKENS.index("state"), len(self.TOKENS)
        last = self.blocks[-1] if len(self.blocks) else None  # a frame may stand for itself
        if self.training and isinstance(last, Shortening) and type(self).mix is TokenPolicy.mix:
            x = self.dropout(self.embed_norm(tokens[:, : tokens.shape[1] - (every - 1 - place)]))  # to the last state
            for block in self.blocks[:-1]:
                x = block(x)
            states = self.norm(last.at(x, place, every))  # (b, k, d)
        else:
            x = self.mix(self.dropout(self.embed_norm(tokens)), windows)
            states = self.norm(x)[:, place::every]  # (b, k, d)
        return torch.tanh(self.head(states))

    def newest(self, windows: Windows) -> Tensor:
        """`forward` at the last step alone, `(b, a)`: without what only other tokens' outputs need.

        A causal block does not see the last token, an action that is not known, in the state token before it.
        """
        block: Any = self.blocks[-1] if len(self.blocks) else None
        own = all(getattr(type(self), name) is getattr(TokenPolicy, name) for name in ("forward", "decode", "mix"))
        if not own or not hasattr(block, "newest") or block._forward_hooks or block._forward_pre_hooks:
            return super().newest(windows)
        late = len(self.TOKENS) - 1 - self.TOKENS.index("state")  # tokens behind the state's
        tokens = self.embed(windows)
        x = self.dropout(self.embed_norm(tokens[:, : tokens.shape[1] - late]))
        for before in self.blocks[:-1]:
            x = before(x)
        return torch.tanh(self.head(self.norm(block.newest(x))))

    def mix(self, x: Tensor, windows: Windows) -> Tensor:
        """The blocks: `(b, l, d) -> (b, l, d)`."""
        for block in self.blocks:
            x = block(x)
        return x


def official_frame(policy: TokenPolicy, inside: str) -> dict[str, str]:
    """The authors' keys of the frame's own weights; `inside` is the name of the class that holds their blocks."""
    names = {
        "embed_rtg": "embed_return",
        "embed_norm": "embed_ln",
        "norm": f"{inside}.ln_f",
        "head": "predict_action.0",
    }
    names |= {f"embed_{name}": f"embed_{name}" for name in policy.TOKENS if name != "rtg"}
    found = {f"{own}.{part}": f"{theirs}.{part}" for own, theirs in names.items() for part in ("weight", "bias")}
    return found if policy.embed_timestep is None else found | {"embed_timestep.weight": "embed_timestep.weight"}


def official_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The frame's fields in a mapping of the authors' sizes; `rtg_scale` need not be there."""
    names = ("state_size", "action_size", "context", "width", "layers", "max_timestep")
    scale = {"rtg_scale": config["rtg_scale"]} if "rtg_scale" in config else {}
    return {name: config[name] for name in names} | scale
