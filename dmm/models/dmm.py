"""Decision MetaMamba: a Dense Sequence Mixer for what is near, a Mamba without convolution for what is far.

Paper, equation 3:      x = LN(X);  z = x + DSM(x);  z = LN(z);  Y = z + Mamba(z)
released code:          h = h + DSM(LN1(h));  h = h + Mamba(LN2(h))

Both readings, and each other point where paper and code differ, are fields of `DMMConfig`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from dmm.configs import check_positive
from dmm.errors import InputError, require_choice
from dmm.fused import branch
from dmm.layers.initial import init_linear
from dmm.layers.local import DenseSequenceMixer, DepthwiseConv, LocalMixer, ModalityMixer
from dmm.layers.mamba import AInit, MambaBlock, StepInit
from dmm.models.entry import Domain, Facts, Model, Official, domain
from dmm.models.frame import TokenPolicy, TokenPolicyConfig, official_frame

Residual = Literal["normalized", "raw"]
LocalMixing = Literal["dense", "depthwise", "multimodal"]
LOCAL_MIXERS: dict[str, Callable[..., LocalMixer]] = {
    "dense": DenseSequenceMixer,
    "depthwise": DepthwiseConv,
    "multimodal": ModalityMixer,
}


@dataclass(frozen=True, kw_only=True)
class DMMConfig(TokenPolicyConfig):
    """A Decision MetaMamba. The defaults are the released code's structure with what looks like slips put right:
    its own norms and its own trained mixer in each layer, step sizes started as Mamba does, zeros for padding."""

    window: int = 6  # w tokens that the DSM sees: two time steps
    local_mixer: LocalMixing = "dense"  # the DSM; depthwise is "Conv" of table 3, multimodal that of table 9
    expand: int = 1  # inner channels of Mamba per channel; Mamba has 2, the released code 1
    ssm_state: int = 16  # n
    residual: Residual = (
        "raw"  # what the residual adds to: the normalised input (paper, eq. 3) or the raw stream (code)
    )
    share_norms: bool = False  # one pair of LayerNorms for all layers (code)
    share_dsm: bool = False  # one DSM for all layers (code for AntMaze and Kitchen)
    train_dsm: bool = True  # False: the DSM stays at its random start, as in the code for AntMaze and Kitchen
    dsm_bias: bool = False  # affine (paper) or linear (code)
    step_init: StepInit = "mamba"  # step sizes as Mamba starts them, or wiped by the generic initialisation (code)
    a_init: AInit = "s4d-real"  # A at -(1..n), or drawn from -U[1, 2]: "HiPPO" and "random" of table 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "expand", "ssm_state")
        tokens = 3 * self.context
        if not 1 <= self.window <= tokens:
            raise InputError(
                f"window: got {self.window}, allowed is 1 to {tokens}, the tokens of context {self.context}"
            )
        require_choice("residual", self.residual, Residual)
        require_choice("local_mixer", self.local_mixer, LocalMixing)
        require_choice("step_init", self.step_init, StepInit)
        require_choice("a_init", self.a_init, AInit)

    @classmethod
    def paper(cls, state_size: int, action_size: int, **changes: Any) -> DMMConfig:
        """What the paper's text describes: equation 3, an affine DSM in each layer, Mamba's expansion of 2."""
        text: dict[str, Any] = {"residual": "normalized", "dsm_bias": True, "expand": 2}
        return cls(state_size=state_size, action_size=action_size, **(text | changes))

    @classmethod
    def released(cls, state_size: int, action_size: int, *, domain: Domain = "mujoco", **changes: Any) -> DMMConfig:
        """What the authors' code (`too-z/decision-metamamba`, commit 90ad44d) runs for a domain of D4RL.

        AntMaze and Kitchen: 128 channels, one DSM for all layers that is never trained, returns-to-go not scaled.
        """
        require_choice("domain", domain, Domain)
        code: dict[str, Any] = {"share_norms": True, "step_init": "wiped", "padding": "released"}
        if domain != "mujoco":
            code |= {"width": 128, "share_dsm": True, "train_dsm": False, "rtg_scale": 1.0}
        return cls(state_size=state_size, action_size=action_size, **(code | changes))


class DMMState(NamedTuple):
    """What a DMM block remembers between two tokens."""

    local: Any
    """Of the local mixer."""
    overall: Any
    """Of the global mixer."""


class DMMBlock(nn.Module):
    """One layer, `(b, l, d) -> (b, l, d)`: local mixing, then global mixing, each with norm and residual.

    Args:
        local_norm, local_mixer, global_norm, global_mixer: modules of signature `(b, l, d) -> (b, l, d)`; layers may
            share them. To take tokens a few at a time, the mixers need `init_state` and `extend`.
        residual: `normalized` adds to the normalised input (paper, equation 3), `raw` to the input itself (code).
    """

    local_mixer: Any
    global_mixer: Any

    def __init__(
        self,
        local_norm: nn.Module,
        local_mixer: nn.Module,
        global_norm: nn.Module,
        global_mixer: nn.Module,
        residual: Residual,
    ):
        super().__init__()
        self.local_norm, self.local_mixer = local_norm, local_mixer
        self.global_norm, self.global_mixer = global_norm, global_mixer
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        for norm, mixer in ((self.local_norm, self.local_mixer), (self.global_norm, self.global_mixer)):
            fused = branch(norm, mixer, x, self.residual == "normalized")
            if fused is not None:
                x = fused()
            else:
                normed = norm(x)
                x = (normed if self.residual == "normalized" else x) + mixer(normed)
        return x

    def init_state(self, batch: int) -> DMMState:
        """The state before the first token."""
        return DMMState(self.local_mixer.init_state(batch), self.global_mixer.init_state(batch))

    def extend(self, x: Tensor, state: DMMState, present: Tensor | None = None) -> tuple[Tensor, DMMState]:
        """The next `t` tokens: `(b, t, d)`, state -> `(b, t, d)`, new state; see `MambaBlock.extend`."""
        normed = self.local_norm(x)
        y, local = self.local_mixer.extend(normed, state.local, present)
        x = (normed if self.residual == "normalized" else x) + y
        normed = self.global_norm(x)
        y, overall = self.global_mixer.extend(normed, state.overall, present)
        return (normed if self.residual == "normalized" else x) + y, DMMState(local, overall)

    def parts(self) -> dict[str, nn.Module]:
        """What the layer adds to its input, by name, in order."""
        return {"DSM": self.local_mixer, "Mamba": self.global_mixer}


class DecisionMetaMamba(TokenPolicy):
    """The policy of the paper: embeddings, `config.layers` DMM blocks, norm, head.

    Args:
        config: see `DMMConfig`; `DMMConfig.paper(...)` and `DMMConfig.released(...)` are the two readings.
    """

    config: DMMConfig

    def __init__(self, config: DMMConfig):
        super().__init__(config)
        norms, mixer = _norms(config), _dsm(config)
        for layer in range(config.layers):
            if layer and not config.share_norms:
                norms = _norms(config)
            if layer and not config.share_dsm:
                mixer = _dsm(config)
            self.blocks.append(DMMBlock(norms[0], mixer, norms[1], _mamba(config), config.residual))


def _norms(config: DMMConfig) -> tuple[nn.LayerNorm, nn.LayerNorm]:
    return nn.LayerNorm(config.width), nn.LayerNorm(config.width)


def _dsm(config: DMMConfig) -> LocalMixer:
    mixer = LOCAL_MIXERS[config.local_mixer](config.width, config.window, bias=config.dsm_bias)
    if config.train_dsm:
        for layer in mixer.modules():
            if isinstance(layer, nn.Linear):
                init_linear(layer)
    else:  # the generic initialisation of the released code does not reach the DSM that it forgets to register
        mixer.requires_grad_(False)
    return mixer


def _mamba(config: DMMConfig) -> MambaBlock:
    block = MambaBlock(
        config.width,
        state_size=config.ssm_state,
        expand=config.expand,
        conv_width=None,
        step_init=config.step_init,
        a_init=config.a_init,
    )
    for layer in (block.in_proj, block.x_proj, block.out_proj):
        init_linear(layer)
    return block


def _paper_defaults(facts: Facts) -> dict[str, Any]:
    return asdict(DMMConfig.paper(facts.state_size, facts.action_size))


def _released_defaults(facts: Facts) -> dict[str, Any]:
    return asdict(DMMConfig.released(facts.state_size, facts.action_size, domain=domain(facts.env_id)))


def _released_sizes(facts: Facts) -> dict[str, Any]:
    """What the released code's domain decides; the structure stays that of the entry."""
    return {} if domain(facts.env_id) == "mujoco" else {"width": 128, "rtg_scale": 1.0}


FORGOTTEN = "unregistered/dsm"
"""The one DSM of the released code for AntMaze and Kitchen, which its state dict does not hold."""


def _official_config(config: Mapping[str, Any]) -> DMMConfig:
    env = str(config["env"]).lower()
    names: dict[str, Domain] = {"antmaze": "antmaze", "kitchen": "kitchen"}
    known: Domain = next((found for name, found in names.items() if name in env), "mujoco")
    sizes = {"context": config["k"], "width": config["d"], "layers": config["layers"], "window": config["window"]}
    scale = {"rtg_scale": config["rtg_scale"]} if "rtg_scale" in config else {}
    return DMMConfig.released(config["s"], config["a"], domain=known, **sizes, **scale)


def _official_sources(policy: DecisionMetaMamba) -> dict[str, str]:
    found = official_frame(policy, "model")
    for own, theirs in {"local_norm": "ln_1", "global_norm": "ln_2"}.items():  # of the first layer, and of all
        found |= {f"blocks.0.{own}.{part}": f"model.{theirs}.{part}" for part in ("weight", "bias")}
    for i, block in enumerate(policy.blocks):
        if not policy.config.share_dsm:
            found[f"blocks.{i}.local_mixer.linear.weight"] = f"model.local_sequence_mixers.{i}.lin.weight"
        elif i == 0:
            found["blocks.0.local_mixer.linear.weight"] = FORGOTTEN
        for key, _ in block.global_mixer.named_parameters():  # type: ignore[union-attr]
            found[f"blocks.{i}.global_mixer.{key}"] = f"model.global_sequence_mixers.{i}.{key}"
    return found


OFFICIAL = Official(
    config=_official_config,
    sources=_official_sources,
    notes={
        FORGOTTEN: " (the release's state dict does not hold its one DSM for AntMaze and Kitchen, which it never "
        "registers: give that layer's weight under this key)"
    },
)
"""The release, whatever reading the name stands for; sizes by its names, and `env` that tells its domains apart."""

SOURCE = "Kim et al. 2025, arXiv 2502.02960; too-z/decision-metamamba@90ad44d"
MODEL = Model(
    name="dmm",
    policy=DecisionMetaMamba,
    config=DMMConfig,
    description="Decision MetaMamba, this package's defaults",
    source=SOURCE,
    published=_released_sizes,
    official=OFFICIAL,
)
PAPER = Model(
    name="dmm-paper",
    policy=DecisionMetaMamba,
    config=DMMConfig,
    description="Decision MetaMamba as the paper's text has it",
    source=SOURCE,
    defaults=_paper_defaults,
    published=_released_sizes,
    fit_rtg_scale=False,
)
RELEASED = Model(
    name="dmm-released",
    policy=DecisionMetaMamba,
    config=DMMConfig,
    description="Decision MetaMamba as the authors' code runs it",
    source=SOURCE,
    defaults=_released_defaults,
    published=_released_defaults,
    fit_rtg_scale=False,
    official=OFFICIAL,
)
