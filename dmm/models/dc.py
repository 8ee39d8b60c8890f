"""Decision ConvFormer: one depth-wise causal convolution for each modality in attention's place.

    x = LN(tokens + timestep)
    y_t = b^m + sum_j W^m_j h_{t-w+1+j},  h = LN1(x),  m the modality of token t
    x = x + y;  x = x + MLP(LN2(x))                      in each layer
    action = tanh(head(LN(x) at the state token))

Source: Kim et al. 2024, `beanie00/Decision-ConvFormer`, folder `gym`. There is no mask: padded steps are tokens like
others, and what stands in them (`padding`) moves the actions of the first real steps. Tokens before the first count as
zero behind the norm. An action depends on `layers * (window - 1) + 1` tokens and no more, so that longer windows give
the same action.

Departures: sizes are those of the frame (`sizes=published` takes the authors' sizes and recipe) and padded steps are
zeros in training too (`padding = "released"`, which `sizes=published` takes, fills them as the authors do). Each of
the three convolutions is computed at the tokens of its modality alone and, while training, the last layer at the state
tokens alone, which are all that the head reads. The start is the authors': convolutions as PyTorch starts them.
`dc-no-actions` is their `--remove_act_embs`: two tokens per step and two convolutions; their embedding of actions,
which nothing reads then, is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dmm.configs import check_positive
from dmm.errors import InputError
from dmm.fused import branch
from dmm.layers.dropout import Dropout
from dmm.layers.local import ModalityConv, ModalityState
from dmm.layers.mlp import GeluMLP
from dmm.models.dt import RECIPE
from dmm.models.entry import Facts, Model, Official, Source, domain
from dmm.models.frame import Shortening, TimedConfig, TokenPolicy, official_frame, official_sizes


@dataclass(frozen=True, kw_only=True)
class DCConfig(TimedConfig):
    """A Decision ConvFormer. `dropout` also falls on what each MLP adds."""

    window: int = 6  # w tokens that each convolution sees: two time steps
    action_tokens: bool = True  # False: each step is a return-to-go and a state

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "window")


class DCLayer(Shortening):
    """`x + conv(LN(x))`, then `x + MLP(LN(x))` with the exact GELU: `(b, l, d) -> (b, l, d)`."""

    def __init__(self, config: DCConfig, modalities: int):
        super().__init__()
        d = config.width
        self.conv_norm, self.mlp_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.conv, self.mlp = ModalityConv(d, config.window, modalities), GeluMLP(d)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        fused = branch(self.conv_norm, self.conv, x, normalized=False)
        return self._feed(fused() if fused is not None else x + self.conv(self.conv_norm(x)))

    def at(self, x: Tensor, place: int, every: int) -> Tensor:
        fused = branch(self.conv_norm, self.conv, x, normalized=False)
        if fused is not None:
            return self._feed(fused(only=place))
        return self._feed(x[:, place::every] + self.conv.at(self.conv_norm(x), place))

    def init_state(self, batch: int) -> ModalityState:
        """The state before the first token."""
        return self.conv.init_state(batch)

    def extend(self, x: Tensor, state: ModalityState, present: Tensor | None = None) -> tuple[Tensor, ModalityState]:
        """The next `t` tokens: `(b, t, d)`, state -> `(b, t, d)`, new state; see `ModalityConv.extend`."""
        y, state = self.conv.extend(self.conv_norm(x), state, present)
        return self._feed(x + y), state

    def parts(self) -> dict[str, nn.Module]:
        """What the layer adds to its input, by name, in order."""
        return {"convolution": self.conv, "MLP": self.mlp}

    def _feed(self, x: Tensor) -> Tensor:
        fused = branch(self.mlp_norm, self.mlp, x, normalized=False)
        if fused is not None:
            return fused(kept=self.dropout.kept(x))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]


class DecisionConvFormer(TokenPolicy):
    """`config.layers` layers of convolutions in the shared frame."""

    config: DCConfig

    def __init__(self, config: DCConfig):
        if not config.action_tokens:
            self.TOKENS = ("rtg", "state")
        super().__init__(config)
        self.blocks.extend(DCLayer(config, len(self.TOKENS)) for _ in range(config.layers))

    @property
    def reach(self) -> int:
        """Tokens that an action depends on, its own state token included."""
        return self.config.layers * (self.config.window - 1) + 1


CONVOLUTIONS = {"rtg": "rtg_conv1d", "state": "obs_conv1d", "action": "act_conv1d"}
"""The authors' names, by modality."""


def _sources(policy: DecisionConvFormer) -> dict[str, Source]:
    found: dict[str, Source] = dict(official_frame(policy, "transformer"))
    names = {"conv_norm": "ln_1", "mlp_norm": "ln_2", "mlp.0": "mlp.0", "mlp.2": "mlp.2"}
    names |= {f"conv.convs.{i}": f"conv.{CONVOLUTIONS[name]}" for i, name in enumerate(policy.TOKENS)}
    for i in range(len(policy.blocks)):
        for own, theirs in names.items():
            for part in ("weight", "bias"):
                found[f"blocks.{i}.{own}.{part}"] = f"transformer.h.{i}.{theirs}.{part}"
    return found


def _config(config: Mapping[str, Any], action_tokens: bool) -> DCConfig:
    removed = config.get("remove_action_tokens", not action_tokens)
    if bool(removed) is action_tokens:
        other = WITHOUT_ACTIONS.name if action_tokens else MODEL.name
        raise InputError(
            f"remove_action_tokens: got {removed}, allowed here is {not action_tokens}; {other} is the other"
        )
    return DCConfig(**official_sizes(config), window=config["window"], action_tokens=action_tokens)


def _unused(key: str) -> bool:
    return key.startswith("transformer.wte.")


def _published(facts: Facts) -> dict[str, Any]:
    """The authors' sizes and recipe; where they differ within an environment, those of most of its sets.

    Their README has hopper-medium alone; width and rate of other sets are those of Ota's scripts, which follow them.
    Kitchen they do not have: it gets what is neither hopper nor a maze.
    """
    hopper = facts.env_id.lower().startswith("hopper")
    return {
        "context": 8,
        "width": 256 if hopper else 128,
        "layers": 3,
        "window": 6,
        "dropout": 0.1,
        "max_timestep": 1000,
        **_return_scale(facts),
        "start": "published",
        "padding": "released",
        **RECIPE,
        "learning_rate": 1e-4 if hopper else 1e-3,
    }


def _return_scale(facts: Facts) -> dict[str, Any]:
    """Theirs; where they have none, as for the kitchen, what the data's returns fit."""
    scales: dict[str, dict[str, Any]] = {"mujoco": {"rtg_scale": 1000.0}, "antmaze": {"rtg_scale": 1.0}}
    return scales.get(domain(facts.env_id), {})


def _without_action_tokens(facts: Facts) -> dict[str, Any]:
    return {"action_tokens": False}


SOURCE = "Kim et al. 2024, arXiv 2310.03022; beanie00/Decision-ConvFormer@3db9b9e"


def _published_without_actions(facts: Facts) -> dict[str, Any]:
    return _published(facts) | _without_action_tokens(facts)


MODEL = Model(
    name="dc",
    policy=DecisionConvFormer,
    config=DCConfig,
    description="Decision ConvFormer: a convolution for each modality",
    source=SOURCE,
    published=_published,
    official=Official(config=lambda config: _config(config, True), sources=_sources, unused=_unused),
)
WITHOUT_ACTIONS = Model(
    name="dc-no-actions",
    policy=DecisionConvFormer,
    config=DCConfig,
    description="Decision ConvFormer that sees no actions",
    source=SOURCE,
    defaults=_without_action_tokens,
    published=_published_without_actions,
    official=Official(
        config=lambda config: _config(config, False),
        sources=_sources,
        unused=lambda key: _unused(key) or key.startswith("embed_action."),
    ),
)
