"""Waypoint Transformer: behaviour cloning by a small transformer that also sees where it should be a little later.

    waypoint_t = frozen network(state_t, condition)         `dmm.models.waypoints`, trained before
    x_t = tanh(W_e [state_t, condition, waypoint_t] + b_e) + place_t
    x = x + attention(LN(x));  x = x + W_2 gelu(W_1 LN(x))  in each layer, causal
    h_t = relu(W_h tanh(W_f LN(x_t) + b_f) + b_h)
    action_t ~ N(W h_t + b, exp(log_std)^2),                loss = -mean log p(action) over real steps

The condition is a goal where the states of the data show one (mazes: x, y; kitchen: the whole state), else two returns:
`--set condition=goal` or `returns` chooses. Actions are not seen, nothing is normalised, `place` is the place in the
window and not the time of the episode, and **padding is read like anything else**: there is no mask for it. All linear
layers start orthogonal (gain sqrt(2), 0.01 for the head), biases and places at zero. Played is the mean.

Acting, a history that is still short takes the places 0, 1, ..., and all of it sees the present condition:

    goal       what the environment asks for (`Wanted.goals`), else `config.goal`: in the kitchen as for RvS-G
    returns    average = target / L, constant;   cumulative = (target - rewards so far) / N

L (`longest`) is the length of the data's longest episode, 1000 in MuJoCo, and N (`return_scale`) their largest return
rounded to thousands; for small returns, where the release divides by zero, `waypoints.return_scale` says what it is.
So a target return alone gives both. The authors' targets are fractions of the expert's return:

    average = fraction * expert return / 1000,   cumulative = average * 1000 / N - rewards so far / N

with N 3000 for Hopper, 5000 for HalfCheetah and 4000 for Walker2d, and 4000, 11000 and 5000 for their medium-expert
sets. Tried are Hopper 0.975 to 1.075 (medium), 0.95 (medium-replay), 1.175 to 1.25 (medium-expert); HalfCheetah 0.425
to 0.6, 0.375 to 0.525, 0.9 to 1.1; Walker2d 0.8 to 0.95, 0.7 to 0.95, 1.175 to 1.25. On Hopper-medium the cumulative
return starts at 2200 / 3000 whatever the average: a target of 2200 with `longest` = 2200 / average asks for both.

The waypoint network gets `waypoint_steps` updates, or as many as the run itself where that is 0; the authors give it
40,000 and the policy 30,000. Its recipe is theirs in all sizes (Adam at 1e-3, nothing else), with batches of
`waypoint_batch_size`. A run that is trained further keeps the network that it has.

Source: Badrinath et al. 2023, arXiv 2306.14069; StanfordAI4HI/waypoint-transformer at commit 716f514 on
stable-baselines3 1.2.0, whose default leaves out the actions that the paper's figure shows. Departures: those of
`dmm.models.waypoints`; discrete actions, which it has not, get logits as in `dmm.models.bc`; ant mazes of D4RL are cut
at timeouts only, other data where their episodes end. In the frame's sizes policy and waypoint network together have as
many weights as the default model has for Hopper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dmm.configs import check_positive
from dmm.data.windows import Windows, right_padded
from dmm.errors import InputError
from dmm.layers.attention import PreNormBlock
from dmm.layers.gaussian import GaussianHead
from dmm.models.bc import LikelihoodPolicy
from dmm.models.entry import Facts, Model, Official, Source, Stage, only
from dmm.models.rvs import usual_goal, wanted_goals
from dmm.models.starformer import BLOCK
from dmm.models.waypoints import (
    HORIZON,
    PAIRS,
    ConditionConfig,
    ConditionDraws,
    ConditionWindows,
    WaypointNet,
    condition_fields,
)
from dmm.policy import Policy, Target, Wanted, next_window

KINDS = {"reward": "returns", "goal": "goal"}
"""The conditions by the authors' names."""
WAYPOINT_KEYS = ("waypoint_weights/", "waypoint.")
"""What the keys of the waypoint network's weights, a state dict of its own, stand behind."""
TRUNK = "model.mlp_extractor.shared_net.0"


@dataclass(frozen=True, kw_only=True)
class WTConfig(ConditionConfig):
    """A Waypoint Transformer and its waypoint network."""

    context: int = 8  # k time steps, one token each
    width: int = 64  # d channels
    layers: int = 2
    heads: int = 8
    features: int = 64  # of the layer with tanh behind the transformer
    hidden: int = 64  # of the layer with relu behind that
    dropout: float = 0.1  # on attention weights and on what each block adds
    places: int = 0  # in the window that have a vector, at least k; 0: one more than k, as in the release
    longest: int = 1000  # L, steps of the longest episode of the data
    waypoint_width: int = 64  # of each hidden layer of the waypoint network
    waypoint_layers: int = 4  # hidden ones
    waypoint_horizon: int = HORIZON  # how many steps ahead a waypoint lies; of goals only
    waypoint_steps: int = 0  # updates of the waypoint network; 0: as many as the run has when it begins
    waypoint_batch_size: int = 64  # windows of waypoint_horizon + 10 steps

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "context", "width", "layers", "heads", "features", "hidden", "longest")
        check_positive(self, "waypoint_width", "waypoint_layers", "waypoint_horizon", "waypoint_batch_size")
        if self.width % self.heads:
            raise InputError(f"heads: got {self.heads}, allowed are divisors of width {self.width}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: got {self.dropout:g}, allowed is 0 <= dropout < 1")
        if self.places and self.places < self.context:
            raise InputError(f"places: got {self.places}, allowed is at least context {self.context}, or 0")
        if self.waypoint_steps < 0:
            raise InputError(f"waypoint_steps: got {self.waypoint_steps}, allowed is 0 (as the run) or more")


class WaypointTransformer(LikelihoodPolicy):
    """`ConditionWindows (b, k, ...) -> actions (b, k, a)`; see the module."""

    batch = ConditionWindows
    usual_goal: Tensor

    def __init__(self, config: WTConfig):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config, d = config, config.width
        self.embed = nn.Linear(config.state_size + 2 * config.condition_size, d)
        self.places = nn.Embedding(config.places or config.context + 1, d)
        self.blocks = nn.ModuleList(PreNormBlock(d, config.heads, config.dropout) for _ in range(config.layers))
        self.norm, self.features = nn.LayerNorm(d), nn.Linear(d, config.features)
        self.hidden = nn.Linear(config.features, config.hidden)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, gain=2**0.5)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.places.weight)
        self.head = GaussianHead(config.hidden, config.action_size)
        self.waypoints = WaypointNet(config, config.waypoint_width, config.waypoint_layers).requires_grad_(False)
        self.register_buffer("usual_goal", torch.tensor(usual_goal(config.goal)), persistent=False)

    def field_sizes(self) -> dict[str, int]:
        return super().field_sizes() | {"condition": self.config.condition_size}

    def adopt(self, stages: Sequence[Policy]) -> None:
        """The waypoint network of the first stage, frozen."""
        self.waypoints.load_state_dict(stages[0].waypoints.state_dict())  # type: ignore[operator, union-attr]

    def outputs(self, windows: Windows) -> Tensor:
        """The Gaussian's means, or logits of discrete actions: `(b, k, a)`, for windows of any k that has places."""
        if not isinstance(windows, ConditionWindows):
            raise InputError(f"windows: got {type(windows).__name__}, allowed are ConditionWindows")
        k, most = windows.mask.shape[-1], self.places.num_embeddings
        if k > most:
            raise InputError(f"windows: got {k} steps, allowed are at most {most}, which have places")
        states, condition = windows.states, windows.condition
        x = torch.cat([states, condition, self.waypoints(states, condition)], dim=-1)
        numbers = torch.arange(k, device=x.device)
        x = torch.tanh(self.embed(x)) + self.places(numbers.expand(x.shape[:-1]))  # (b, k, d)
        causal = numbers[:, None] >= numbers
        for block in self.blocks:
            x = block(x, causal)
        x = torch.tanh(self.features(self.norm(x)))
        return self.head(torch.relu(self.hidden(x)))  # type: ignore[no-any-return]

    def init_state(self, n: int, target: Target) -> ConditionWindows:
        """The memory of `n` episodes: a window with what is wanted of each.

        Raises:
            InputError: goals are wanted and there are none, nor `config.goal`, or they have another shape.
        """
        begun: ConditionWindows = super().init_state(n, target)
        if self.config.condition == "goal":
            return self._asked(begun, wanted_goals(n, target, self.config.goal_size, self.usual_goal, "wt"))
        returns = torch.as_tensor(Wanted.of(target).returns).to(self.state_mean).expand(n)
        return self._asked(begun, torch.stack([returns / self.config.longest, returns / self.config.return_scale], 1))

    @torch.no_grad()
    def act(
        self, state: ConditionWindows, observation: Tensor, reward: Tensor | None = None
    ) -> tuple[Tensor, ConditionWindows]:
        """One time step, as in `Policy.act`; of returns, the cumulative one alone falls by what was earned."""
        condition = state.condition[:, -1]
        now = next_window(state, observation, reward)
        if self.config.condition == "returns":
            to_go = now.returns_to_go[:, -1, 0] / self.config.return_scale
            condition = torch.stack([condition[:, 0], to_go], dim=1)
        now = self._asked(now, condition)
        made = self.forward(right_padded(now))
        last = now.mask.sum(dim=1) - 1  # (n,)
        action = self.played(made[torch.arange(len(last), device=last.device), last])
        now.actions[:, -1] = action
        return action, now

    def _asked(self, windows: ConditionWindows, condition: Tensor) -> ConditionWindows:
        """The windows with this condition, `(n, c)`, at all their steps."""
        return dataclasses.replace(windows, condition=condition[:, None].repeat(1, self.context, 1))


def _fields(facts: Facts) -> dict[str, Any]:
    """What the data decide; where no episode is twice as long as the horizon, waypoints lie less far ahead."""
    horizon = min(HORIZON, max(1, facts.longest // 2))
    return condition_fields(facts) | {"longest": facts.longest, "waypoint_horizon": horizon}


def _first_stage(config: WTConfig) -> dict[str, Any]:
    """The waypoint network's config and recipe."""
    common = {field.name: getattr(config, field.name) for field in dataclasses.fields(ConditionConfig)}
    changes = {name: value for name, value in common.items() if name not in ("state_size", "action_size")}
    changes |= {"width": config.waypoint_width, "layers": config.waypoint_layers}
    changes |= {"horizon": config.waypoint_horizon, "context": config.waypoint_horizon + PAIRS}
    changes |= {"batch_size": config.waypoint_batch_size, "learning_rate": 1e-3}
    changes |= dict.fromkeys(("warmup", "weight_decay", "clip"), 0.0)
    return changes | ({"steps": config.waypoint_steps} if config.waypoint_steps else {})


def _published(facts: Facts) -> dict[str, Any]:
    """Sizes and recipe, the same for all domains."""
    sizes = {"context": 20, "width": 128, "layers": 2, "heads": 16, "features": 512, "hidden": 1024, "dropout": 0.15}
    sizes |= {"waypoint_width": 1024, "waypoint_layers": 4, "waypoint_batch_size": 1024, "waypoint_steps": 40_000}
    recipe = {"steps": 30_000, "batch_size": 1024, "learning_rate": 1e-3}
    return sizes | recipe | dict.fromkeys(("warmup", "weight_decay", "clip"), 0.0)


def _official_config(sizes: Mapping[str, Any]) -> WTConfig:
    if sizes["kind"] not in KINDS:
        raise InputError(f"kind: got {sizes['kind']!r}, allowed are {', '.join(KINDS)}")
    names = {"state_size": "state_size", "action_size": "action_size", "width": "width", "heads": "heads"}
    names |= {"layers": "layers", "context": "context", "features": "vocab", "hidden": "hidden"}
    return WTConfig(
        **{ours: sizes[theirs] for ours, theirs in names.items()},
        condition=KINDS[sizes["kind"]],  # type: ignore[arg-type]
        goal_size=sizes["condition_size"],
        places=sizes["block_size"] + 1,
        return_scale=sizes.get("return_normalization", 1000.0),
        longest=sizes.get("longest", 1000),
        waypoint_width=sizes["waypoint_hidden"],
        waypoint_horizon=sizes.get("waypoint_horizon", HORIZON),
    )


def _named(weights: dict[str, Tensor], sizes: Mapping[str, Any]) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Both networks' weights under one name each, and the size of a condition, which the waypoint network's has."""
    first = WAYPOINT_KEYS[0]
    made: dict[str, Tensor] = {}
    for key, weight in weights.items():
        behind = next((key.removeprefix(each) for each in WAYPOINT_KEYS if key.startswith(each)), None)
        made[key.removeprefix("weights/") if behind is None else first + behind] = weight
    ends = {int(key.split(".")[1]): key for key in made if key.startswith(f"{first}net.") and key.endswith(".bias")}
    if not ends:
        raise InputError(
            f"weights: no waypoint network, whose keys stand behind {' or '.join(map(repr, WAYPOINT_KEYS))}"
        )
    return made, {"condition_size": made[ends[max(ends)]].numel(), **sizes}


def _sources(policy: WaypointTransformer) -> dict[str, Source]:
    layers = {"embed": f"{TRUNK}.obs_emb.0", "norm": f"{TRUNK}.ln_f", "features": f"{TRUNK}.head.0"}
    layers |= {"hidden": "model.mlp_extractor.shared_net.1.0", "head.mean": "model.action_net"}
    for i in range(policy.config.layers):
        layers |= {f"blocks.{i}.{own}": f"{TRUNK}.blocks.{i}.{other}" for own, other in BLOCK.items()}
    for i in range(policy.config.waypoint_layers + 1):
        layers[f"waypoints.net.{2 * i}"] = f"{WAYPOINT_KEYS[0]}net.{2 * i}"
    named: dict[str, Source] = {"head.log_std": "model.log_std", "places.weight": (f"{TRUNK}.pos_emb", only)}
    return named | {
        f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in layers.items() for part in ("weight", "bias")
    }


def _unused(key: str) -> bool:
    """An embedding of tokens, which there are none of, and stable-baselines3's value head."""
    return key.startswith((f"{TRUNK}.tok_emb.", "model.value_net."))


MODEL = Model(
    name="wt",
    policy=WaypointTransformer,
    config=WTConfig,
    description="Waypoint Transformer: goals in mazes and the kitchen, else two returns; trains its waypoints first",
    source="Badrinath et al. 2023, arXiv 2306.14069; StanfordAI4HI/waypoint-transformer@716f514",
    defaults=_fields,
    published=_published,
    fit_rtg_scale=False,
    sampler=ConditionDraws(),
    before=(Stage("waypoints", _first_stage),),
    official=Official(config=_official_config, sources=_sources, unused=_unused, named=_named),
)
