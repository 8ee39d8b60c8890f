"""Ota's Decision Mamba: Decision Transformer with a stock Mamba block in attention's place, and its MLP kept.

    x = LN(tokens + timestep)
    x = x + Mamba(LN1(x));  x = x + MLP(LN2(x))          in each layer
    action = tanh(head(LN(x) at the state token))

Source: Ota 2024, `Toshihiro-Ota/decision-mamba`, folder `gym`. There is no mask: padded steps are tokens like others,
and the scan carries what stands in them (`padding`) to the actions of real steps.

Departures: sizes are those of the frame (`sizes=published` takes the authors' sizes and recipe) and padded steps are
zeros in training too (`padding = "released"`, which `sizes=published` takes, fills them as the authors do). While it is
trained, the last MLP works on the state tokens alone, which are all that the head reads. The start is the authors', in
which the class's own initialisation reaches into Mamba and wipes the step sizes (`step_init = "wiped"`; `"mamba"`
starts them as Mamba does). Its option without action tokens, which no published command uses, is not there. It also
acts as the recurrence that it is (see `dmm.acting`), which the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dmm.configs import check_positive
from dmm.errors import require_choice
from dmm.fused import branch
from dmm.layers.dropout import Dropout
from dmm.layers.mamba import MambaBlock, MambaState, StepInit
from dmm.layers.mlp import GeluMLP
from dmm.models.dt import RECIPE
from dmm.models.entry import Facts, Model, Official, Source, domain
from dmm.models.frame import Shortening, TimedConfig, TokenPolicy, official_frame, official_sizes


@dataclass(frozen=True, kw_only=True)
class DMConfig(TimedConfig):
    """A Decision Mamba of Ota. `dropout` also falls on what each MLP adds."""

    expand: int = 2  # inner channels of Mamba per channel
    ssm_state: int = 16  # n
    conv_width: int = 4  # taps of Mamba's convolution
    step_init: StepInit = "wiped"  # step sizes as the authors' code leaves them, or as Mamba starts them

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "expand", "ssm_state", "conv_width")
        require_choice("step_init", self.step_init, StepInit)


class DMLayer(Shortening):
    """`x + Mamba(LN(x))`, then `x + MLP(LN(x))` with the exact GELU: `(b, l, d) -> (b, l, d)`."""

    def __init__(self, config: DMConfig):
        super().__init__()
        d = config.width
        self.mamba_norm, self.mlp_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.mamba = MambaBlock(
            d,
            state_size=config.ssm_state,
            expand=config.expand,
            conv_width=config.conv_width,
            step_init=config.step_init,
        )
        self.mamba.init_projections()
        self.mlp, self.dropout = GeluMLP(d), Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self._feed(self._scan(x))

    def at(self, x: Tensor, place: int, every: int) -> Tensor:
        return self._feed(self._scan(x)[:, place::every])

    def init_state(self, batch: int) -> MambaState:
        """The state before the first token."""
        return self.mamba.init_state(batch)

    def extend(self, x: Tensor, state: MambaState, present: Tensor | None = None) -> tuple[Tensor, MambaState]:
        """The next `t` tokens: `(b, t, d)`, state -> `(b, t, d)`, new state; see `MambaBlock.extend`."""
        y, state = self.mamba.extend(self.mamba_norm(x), state, present)
        return self._feed(x + y), state

    def parts(self) -> dict[str, nn.Module]:
        """What the layer adds to its input, by name, in order."""
        return {"Mamba": self.mamba, "MLP": self.mlp}

    def _scan(self, x: Tensor) -> Tensor:
        fused = branch(self.mamba_norm, self.mamba, x, normalized=False)
        return fused() if fused is not None else x + self.mamba(self.mamba_norm(x))  # type: ignore[no-any-return]

    def _feed(self, x: Tensor) -> Tensor:
        fused = branch(self.mlp_norm, self.mlp, x, normalized=False)
        if fused is not None:
            return fused(kept=self.dropout.kept(x))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]


class DecisionMamba(TokenPolicy):
    """`config.layers` layers of Mamba and MLP in the shared frame."""

    config: DMConfig

    def __init__(self, config: DMConfig):
        super().__init__(config)
        self.blocks.extend(DMLayer(config) for _ in range(config.layers))


def _sources(policy: DecisionMamba) -> dict[str, Source]:
    found: dict[str, Source] = dict(official_frame(policy, "transformer"))
    names = {"mamba_norm": "norm_mamba", "mlp_norm": "ln_2", "mlp": "mlp_channels", "mamba": "mamba"}
    for i, layer in enumerate(policy.blocks):
        for key, _ in layer.named_parameters():
            part, rest = key.split(".", 1)
            found[f"blocks.{i}.{key}"] = f"transformer.h.{i}.{names[part]}.{rest}"
    return found


def _config(config: Mapping[str, Any]) -> DMConfig:
    inner = {name: config[name] for name in ("expand", "ssm_state", "conv_width") if name in config}
    return DMConfig(**official_sizes(config), **inner)


def _unused(key: str) -> bool:
    return key.startswith("transformer.wte.")


def _published(facts: Facts) -> dict[str, Any]:
    """The authors' sizes and recipe; where they differ within an environment, those of most of its sets.

    AntMaze and Kitchen, which they do not report, get those of halfcheetah.
    """
    hopper = facts.env_id.lower().startswith("hopper")
    return {
        "context": 20,
        "width": 256 if hopper else 128,
        "layers": 3,
        "dropout": 0.1,
        "max_timestep": 1000,
        **({"rtg_scale": 1000.0} if domain(facts.env_id) == "mujoco" else {}),  # else what the data's returns fit
        "start": "published",
        "step_init": "wiped",
        "padding": "released",
        **RECIPE,
        "learning_rate": 1e-4 if hopper else 1e-3,
    }


MODEL = Model(
    name="dm",
    policy=DecisionMamba,
    config=DMConfig,
    description="Ota's Decision Mamba: stock Mamba with an MLP",
    source="Ota 2024, arXiv 2403.19925; Toshihiro-Ota/decision-mamba@35f9944",
    published=_published,
    official=Official(config=_config, sources=_sources, unused=_unused),
)
