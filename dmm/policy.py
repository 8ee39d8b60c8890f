"""The interface that every sequence model of the package serves, and the frame that most of them share.

`Policy` is what training, evaluation, tables and widgets know: `forward(windows)` predicts the actions of whole
windows, `init_state(n, target)`, `act(state, observation, reward)` and `select(state, rows)` run `n` episodes at once.
Observations, rewards and returns-to-go are raw on the outside; a policy normalises them itself, with moments that
travel in its weights.

`TokenPolicy` is the frame of Decision Transformer and its successors: one linear embedding per modality, tokens
interleaved as return-to-go, state, action, a stack of blocks, and a head that reads the action off the state token.
Axes: `b` batch, `k` time steps, `l = 3k` tokens, `d` channels, `s` state size, `a` action size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from dmm.data.windows import Windows
from dmm.dropout import Dropout
from dmm.errors import InputError, finite_number, require_choice, true_or_false, whole_number
from dmm.mamba import init_linear

Padding = Literal["zeros", "released"]
RELEASED_ACTION_PADDING = -10.0
"""What the released code (and Decision Transformer's) writes into the actions of padded steps while training."""


class Policy(nn.Module):
    """A model that acts on returns-to-go, states and actions of the last `context` time steps.

    Discrete actions are one-hot vectors, and squared error on them estimates the probability of each.

    Args:
        state_size: `s`.
        action_size: `a`.
        context: `k` time steps in a window.
    """

    state_mean: Tensor
    state_std: Tensor
    discrete_actions: bool = False  # set where actions are one-hot: then `act` picks the largest entry

    def __init__(self, state_size: int, action_size: int, context: int):
        super().__init__()
        sizes = {"state_size": state_size, "action_size": action_size, "context": context}
        self.state_size, self.action_size, self.context = (whole_number(n, v, 1) for n, v in sizes.items())
        self.register_buffer("state_mean", torch.zeros(self.state_size))
        self.register_buffer("state_std", torch.ones(self.state_size))

    def set_state_moments(self, mean: Tensor, std: Tensor) -> None:
        """Store the moments `(s,)` by which states are z-scored; those of the training data."""
        self.state_mean.copy_(mean)
        self.state_std.copy_(std)

    def forward(self, windows: Windows) -> Tensor:
        """The predicted action at every step of every window: `(b, k, a)`."""
        raise NotImplementedError

    def init_state(self, n: int, target: Tensor | float) -> Windows:
        """The memory of `n` episodes before their first observation.

        Here it is the window of the last `context` steps, all padding, with `target` (a number or `(n,)`), the return
        asked for, in its last place.
        """
        zeros = self.state_mean.new_zeros
        state = Windows(
            returns_to_go=zeros(n, self.context, 1),
            states=zeros(n, self.context, self.state_size),
            actions=zeros(n, self.context, self.action_size),
            timesteps=torch.zeros(n, self.context, dtype=torch.int64, device=self.state_mean.device),
            mask=torch.zeros(n, self.context, dtype=torch.bool, device=self.state_mean.device),
        )
        state.returns_to_go[:, -1, 0] = torch.as_tensor(target, dtype=self.state_mean.dtype)
        return state

    @torch.no_grad()
    def act(self, state: Windows, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Windows]:
        """One time step of `n` episodes: observation `(n, s)` -> action `(n, a)`, new state.

        Args:
            state: from `init_state` or the previous call; not changed.
            observation: `(n, s)`, raw.
            reward: `(n,)`, what the previous action earned; None at the first step. It is taken off the return asked
                for, as in Decision Transformer's evaluation.
        """
        last, began = state.returns_to_go[:, -1], state.mask[:, -1]
        target = last if reward is None else last - reward[:, None].to(last)
        unknown = observation.new_zeros(observation.shape[0], self.action_size)
        now = Windows(
            # before the first step the target stands in a padded place, which is zero from then on
            returns_to_go=_shift(state.returns_to_go * state.mask[..., None], target),
            states=_shift(state.states, observation),
            actions=_shift(state.actions, unknown),
            timesteps=_shift(state.timesteps, state.timesteps[:, -1] + began),
            mask=_shift(state.mask, torch.ones_like(began)),
        )
        action = self.newest(now)
        if self.discrete_actions:  # what is played, and what later steps see, is one-hot as in the data
            action = one_hot(action.argmax(dim=-1), self.action_size).to(action)
        now.actions[:, -1] = action
        return action, now

    def newest(self, windows: Windows) -> Tensor:
        """`forward` at the last step alone, `(b, a)`, whose action is not known yet."""
        return self.forward(windows)[:, -1]

    def select(self, state: Windows, rows: Tensor) -> Windows:
        """The memory of some of the episodes: `rows` are their places in the batch, `(m,)` int64."""
        return Windows(*(getattr(state, field.name)[rows] for field in dataclasses.fields(state)))

    def parameter_count(self) -> int:
        """Trainable weights."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def _shift(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past[:, 1:], new[:, None].to(past)], dim=1)


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


PLAIN: dict[str, Callable[[str, Any], Any]] = {
    "int": partial(whole_number, least=None),
    "float": finite_number,
    "bool": true_or_false,
}
"""What turns a value into the plain type that a field's annotation names."""


def plain_fields(config: Any) -> None:
    """Turn the numbers and truth values of a config dataclass, which may be numpy's, into Python's own.

    Raises:
        InputError: a value that is none of its field's type.
    """
    for field in dataclasses.fields(config):
        if plain := PLAIN.get(str(field.type)):
            object.__setattr__(config, field.name, plain(field.name, getattr(config, field.name)))  # it is frozen


def check_positive(config: object, *names: str) -> None:
    """Raise InputError unless these fields are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(f"{name}: got {getattr(config, name)}, allowed is at least 1")


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


def config_fields(config: type) -> dict[str, str]:
    """Names and types of the fields of a config dataclass, for error messages and `--set`."""
    return {field.name: str(field.type) for field in dataclasses.fields(config)}
