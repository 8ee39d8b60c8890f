"""Multi-grained Decision Mamba, as its authors released it: a second Mamba over whole time steps beside the first.

    tokens = LN(embed(R, s, a)) + timestep                                                       (b, 3k, d)
    h = RMSNorm(x);  x = x + Mamba(h) + fine(h)                                                  in each layer
    fine(h) = LN([g; g; g]),  g = Mamba'(Conv1d(h without its last token, kernel 3, stride 3))   g: (b, k, d)
    action = tanh(head(RMSNorm(x) at the state token));  next state, next return = linear(at the action token)

**The release leaks the future while training.** g holds one vector for each time step, made of the step's return, state
*and action*. `[g; g; g]` lays the k of them out three times one after the other, so that token j gets g_(j mod k) where
that of its own step, floor(j / 3), was surely meant. So most state tokens of a window read later steps, and with them
the very action that they are to predict: training copies it, even where nothing else tells what it is, and that helps
no action which is played. The last step of a window, the only one used for acting, reads g_(k - 2), and its own action
enters no g: it is causal. `groups="tile"`, the default, is this release. `groups="previous"` is a causal reading of our
own: every token of step t gets g_(t - 1), and those of the first step nothing.

**Self-evolution is switched off in the release**, which sets its strength alpha to 0 right before it is used. Were it
on, the target would be (1 - alpha) a + alpha a_hat, where a_hat is the prediction of now, gradient included, and not
that of an earlier policy as in the paper: the term would be (1 - alpha)^2 times the plain one. `evolution` is alpha.

Loss: 0.9 of the squared error of actions and 0.05 each of the smooth L1 of the next state, z-scored, and of the next
return-to-go, scaled; these two over steps whose next step is real. With MLP embeddings, `h + L2(gelu(h))` of
`h = L1(v)`, the head is an MLP without tanh. There is no dropout and no mask of padding.

Source: Lv et al. 2024, arXiv 2406.05427; `aopolin-lv/DecisionMamba` at commit d37dc82 (`decision_transformer.py`,
`modeling_mamba.py`, `seq_trainer.py`). Departures: sizes are those of the frame (context 8, width 64, 3 layers; theirs
are 20, 768, 24), and a vocabulary table of 38,615,040 numbers, which nothing reads, is not there. Linear layers and
convolutions start as PyTorch's do and step sizes as Mamba's, as theirs. Their best trajectory is left out of the data
and each episode after the first is shifted by a step; here data are whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.configs import check_positive
from dmm.data.scores import family
from dmm.data.windows import Windows
from dmm.errors import InputError, require_choice, true_or_false
from dmm.layers.mamba import MambaBlock
from dmm.models.entry import Facts, Model, Official, domain
from dmm.models.frame import TokenPolicy, TokenPolicyConfig
from dmm.policy import masked_mean, of_merged

Groups = Literal["tile", "previous"]
Embedding = Literal["linear", "mlp"]
EPSILON = 1e-5
"""Of all norms."""
WEIGHTS = {"action": 0.9, "state": 0.05, "return": 0.05}
"""Of the loss's terms."""
STRONGEST = 0.5
"""The largest alpha of self-evolution; the release cuts larger ones to it."""


@dataclass(frozen=True, kw_only=True)
class MultigrainedConfig(TokenPolicyConfig):
    """A multi-grained Decision Mamba. The defaults are the release's but for the sizes; `dropout` it has none."""

    dropout: float = 0.0  # after the embedding
    groups: Groups = "tile"  # which step a token's fine branch reads: j mod k (release, leaks), or the one before
    evolution: float = 0.0  # alpha of self-evolution, which only scales the action's term by (1 - alpha)^2
    embedding: Embedding = "mlp"  # residual MLPs and an MLP head without tanh, or linear ones and tanh (Hopper)
    expand: int = 2  # inner channels of both Mambas per channel
    ssm_state: int = 16  # n
    conv_width: int = 4  # taps of their depth-wise convolutions
    max_timestep: int = 1000  # time steps that have an embedding; later ones share the last

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "expand", "ssm_state", "conv_width", "max_timestep")
        require_choice("groups", self.groups, Groups)
        require_choice("embedding", self.embedding, Embedding)
        if not 0 <= self.evolution <= STRONGEST:
            raise InputError(f"evolution: got {self.evolution:g}, allowed is 0 to {STRONGEST:g}")


class ResidualMLP(nn.Module):
    """`h + L2(gelu(h))` with `h = L1(v)`: `(..., size) -> (..., d)`."""

    def __init__(self, size: int, d: int):
        super().__init__()
        self.first, self.second = nn.Linear(size, d), nn.Linear(d, d)

    def forward(self, v: Tensor) -> Tensor:
        h = self.first(v)
        return h + self.second(F.gelu(h))  # type: ignore[no-any-return]


class MLPHead(nn.Module):
    """`L2(gelu(L1(x)))`: `(..., d) -> (..., size)`."""

    def __init__(self, d: int, size: int):
        super().__init__()
        self.first, self.second = nn.Linear(d, d), nn.Linear(d, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x)))  # type: ignore[no-any-return]


class FineBranch(nn.Module):
    """A Mamba over one vector for each time step, laid out for the tokens: `(b, 3k, d) -> (b, 3k, d)`.

    With `groups="tile"` it is not causal, see above. The last token, an action, does not enter in either reading.
    """

    def __init__(self, config: MultigrainedConfig):
        super().__init__()
        d, self.groups = config.width, config.groups
        self.gather = nn.Conv1d(d, d, 3, stride=3)
        self.mixer = _mamba(config)
        self.norm = nn.LayerNorm(d, eps=EPSILON)

    def forward(self, h: Tensor) -> Tensor:
        h = torch.cat([h[:, :-1], torch.zeros_like(h[:, -1:])], dim=1)
        g = self.norm(self.mixer(self.gather(h.mT).mT))  # (b, k, d)
        if self.groups == "tile":
            return g.repeat(1, 3, 1)  # type: ignore[no-any-return]
        return torch.cat([torch.zeros_like(g[:, :1]), g[:, :-1]], dim=1).repeat_interleave(3, dim=1)


class MultigrainedLayer(nn.Module):
    """`x + Mamba(h) + fine(h)` with `h = RMSNorm(x)`: `(b, 3k, d) -> (b, 3k, d)`."""

    def __init__(self, config: MultigrainedConfig):
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=EPSILON)
        self.mixer = _mamba(config)
        self.fine = FineBranch(config)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.mixer(h) + self.fine(h)  # type: ignore[no-any-return]

    def parts(self) -> dict[str, nn.Module]:
        """What the layer adds to its input, by name, in order."""
        return {"Mamba": self.mixer, "fine Mamba": self.fine}


class Predictions(NamedTuple):
    """What the three heads say of every step."""

    actions: Tensor
    """`(b, k, a)`, from the state tokens."""
    next_states: Tensor
    """`(b, k, s)`, z-scored, from the action tokens."""
    next_returns: Tensor
    """`(b, k, 1)`, scaled returns-to-go, from the action tokens."""


class MultigrainedDecisionMamba(TokenPolicy):
    """`config.layers` layers with two Mambas each, and three heads. It reads the frame's `Windows`."""

    config: MultigrainedConfig
    terms = tuple(WEIGHTS)
    embed_rtg: Any  # these five are not always the frame's linear layers and LayerNorm
    embed_state: Any
    embed_action: Any
    norm: Any
    head: Any

    def __init__(self, config: MultigrainedConfig):
        super().__init__(config)
        d, s, a = config.width, config.state_size, config.action_size
        mlp = config.embedding == "mlp"
        embed = ResidualMLP if mlp else nn.Linear
        self.embed_rtg, self.embed_state, self.embed_action = embed(1, d), embed(s, d), embed(a, d)
        self.time_table = nn.Embedding(config.max_timestep, d)
        self.blocks.extend(MultigrainedLayer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(d, eps=EPSILON)
        self.head = MLPHead(d, a) if mlp else nn.Linear(d, a)
        self.state_head, self.return_head = nn.Linear(d, s), nn.Linear(d, 1)

    def decode(self, tokens: Tensor, windows: Windows) -> Tensor:
        return self._actions(self._hidden(tokens, windows))

    def predict(self, windows: Windows) -> Predictions:
        """What all three heads say, of which acting needs the first alone."""
        x = self._hidden(self.embed(windows), windows)
        after = x[:, 2::3]  # the action tokens (b, k, d)
        return Predictions(self._actions(x), self.state_head(after), self.return_head(after))

    def loss(self, batch: Windows) -> dict[str, Tensor]:
        """The three terms, weighted; that of actions is a mean over real steps, the others over those with a next."""
        found = of_merged(self.predict, batch)
        followed = batch.mask[..., 1:]
        next_states = (batch.states[..., 1:, :] - self.state_mean) / self.state_std
        next_returns = batch.returns_to_go[..., 1:, :] / self.config.rtg_scale
        terms = {
            "action": masked_mean((found.actions - batch.actions).square(), batch.mask)
            * (1 - self.config.evolution) ** 2,
            "state": _mean_of_some(_smooth_l1(found.next_states[..., :-1, :], next_states), followed),
            "return": _mean_of_some(_smooth_l1(found.next_returns[..., :-1, :], next_returns), followed),
        }
        return {name: WEIGHTS[name] * term for name, term in terms.items()}

    def _hidden(self, tokens: Tensor, windows: Windows) -> Tensor:
        """Behind the last norm, `(b, 3k, d)`. The time is added behind the embedding's norm, unlike elsewhere."""
        time = self.time_table(windows.timesteps.clamp(max=self.config.max_timestep - 1))  # (b, k, d)
        x = self.embed_norm(tokens) + time.repeat_interleave(3, dim=1)
        return self.norm(self.mix(self.dropout(x), windows))  # type: ignore[no-any-return]

    def _actions(self, x: Tensor) -> Tensor:
        made = self.head(x[:, 1::3])
        return made if self.config.embedding == "mlp" else torch.tanh(made)


def _mamba(config: MultigrainedConfig) -> MambaBlock:
    return MambaBlock(config.width, state_size=config.ssm_state, expand=config.expand, conv_width=config.conv_width)


def _smooth_l1(predicted: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(predicted, target, reduction="none")


def _mean_of_some(x: Tensor, mask: Tensor) -> Tensor:
    """`masked_mean`, but 0 where the mask is empty: windows of one real step have no next one."""
    total = (x.sum(dim=-1) * mask).sum(dim=(-2, -1))
    return total / (mask.sum(dim=(-2, -1)) * x.shape[-1]).clamp(min=1)


def _by_environment(facts: Facts) -> dict[str, Any]:
    """The release's script turns the MLPs off for Hopper."""
    return {"embedding": "linear" if family(facts.env_id) == "hopper" else "mlp"}


def _published(facts: Facts) -> dict[str, Any]:
    """The release's sizes and recipe. Theirs decays all but biases and LayerNorms; `matrices`, the nearest, leaves out
    RMSNorm's gains and Mamba's D, too. All else decays in both, A_log and the table of times included."""
    sizes = {"context": 20, "width": 768, "layers": 24, "padding": "released"} | _by_environment(facts)
    sizes["rtg_scale"] = 1000.0 if domain(facts.env_id) == "mujoco" else 1.0
    recipe = {"steps": 100_000, "batch_size": 64, "learning_rate": 1e-4, "warmup": 0.025}
    return sizes | recipe | {"weight_decay": 1e-5, "decay": "matrices", "epsilon": 1e-6, "clip": 0.25}


def _official_config(sizes: Mapping[str, Any]) -> MultigrainedConfig:
    names = ("state_size", "action_size", "context", "width", "layers", "max_timestep", "rtg_scale")
    mlp = true_or_false("mlp_embedding", sizes["mlp_embedding"])
    if true_or_false("action_tanh", sizes.get("action_tanh", not mlp)) is mlp:  # the release has tanh with linear ones
        raise InputError(f"action_tanh: got {mlp}, allowed with mlp_embedding={mlp} is {not mlp}")
    known = {name: sizes[name] for name in ("expand", "ssm_state", "conv_width") if name in sizes}
    known |= {"groups": sizes.get("group_repeat", "tile"), "embedding": "mlp" if mlp else "linear"}
    return MultigrainedConfig(**{name: sizes[name] for name in names}, **known)


MIXER = ["A_log", "D", "conv1d.weight", "conv1d.bias", "in_proj.weight", "x_proj.weight"]
MIXER += ["dt_proj.weight", "dt_proj.bias", "out_proj.weight"]


def _sources(policy: MultigrainedDecisionMamba) -> dict[str, str]:
    backbone, mlp = "transformer_model.backbone", policy.config.embedding == "mlp"
    whole = {"time_table.weight": "embed_timestep.weight", "norm.weight": f"{backbone}.norm_f.weight"}
    layers = {"embed_norm": "embed_ln", "state_head": "predict_state", "return_head": "predict_rtg"}
    ends = {"embed_rtg": "embed_return", "embed_state": "embed_state", "embed_action": "embed_action"}
    if mlp:
        ends["head"] = "predict_action"
        layers |= {f"{ours}.first": f"{theirs}.fc1" for ours, theirs in ends.items()}
        layers |= {f"{ours}.second": f"{theirs}.fc2" for ours, theirs in ends.items()}
    else:
        layers |= ends | {"head": "predict_action.0"}
    for i in range(policy.config.layers):
        ours, theirs = f"blocks.{i}", f"{backbone}.layers.{i}"
        whole[f"{ours}.norm.weight"] = f"{theirs}.norm.weight"
        layers |= {f"{ours}.fine.gather": f"{theirs}.conv1d", f"{ours}.fine.norm": f"{theirs}.ln_norm"}
        whole |= {f"{ours}.mixer.{name}": f"{theirs}.mixer.{name}" for name in MIXER}
        whole |= {f"{ours}.fine.mixer.{name}": f"{theirs}.mixer_group.{name}" for name in MIXER}
    parts = ("weight", "bias")
    return whole | {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in layers.items() for part in parts}


def _unused(key: str) -> bool:
    """The vocabulary, in its two names; tokens come as vectors and no word is asked for."""
    return key in ("transformer_model.backbone.embeddings.weight", "transformer_model.lm_head.weight")


MODEL = Model(
    name="dm-multigrained",
    policy=MultigrainedDecisionMamba,
    config=MultigrainedConfig,
    description="Multi-grained Decision Mamba as released, which sees the future while training (groups=previous: not)",
    source="Lv et al. 2024, arXiv 2406.05427; aopolin-lv/DecisionMamba@d37dc82",
    defaults=_by_environment,
    published=_published,
    official=Official(config=_official_config, sources=_sources, unused=_unused),
)
