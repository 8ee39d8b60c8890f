"""Decision S4: one token per time step through S4 layers, trained on whole trajectories, acting in constant time.

    x_t = W_2 gelu(W_1 [W_s s_t; W_a a_{t-1}; W_R R_t])            biases left out here; then dropout
    x = gelu(W S4(LN? x)) (+ x)                                    in each layer
    a_t = W_o x_t                                                  without bias and without tanh

Training is one convolution over the trajectory. Acting is the same model as a recurrence, one step at a time from a
state of zeros: what it computes in the n-th step is what the convolution over these n steps gives, at a cost that does
not grow with n. Each step is read with the action before it, which lies outside a window's own actions: the model takes
`HistoryWindows`, padded on the right, so that a window begins with its first step and the state with zeros.

**The frame is a reconstruction.** No code of the authors (Bar-David et al. 2023, arXiv 2306.05167) has been found. The
layer is that of state-spaces/s4@e757cef; embeddings, blocks and recipe are those of ashmita695/MADS4@387e44c, a
multi-agent successor that says it is developed from the authors' code, on its single-agent path, whose missing input
layer was put back. Which of its blocks, widths and recipe made the paper's numbers is not known.

Departures from that code: an episode's first action is a target like all others, since acting begins with it; a window
begins anywhere in a trajectory that is longer than the context, where that code begins at step 0; padded states are raw
zeros; and S4's `C` is kept as it is defined (see `dmm.layers.s4`), where that code replaces it within its first call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.configs import check_positive, plain_fields
from dmm.data.trajectories import Trajectories
from dmm.data.windows import HistoryWindows, WindowSampler, whole_share
from dmm.errors import InputError, whole_number
from dmm.layers.dropout import Dropout
from dmm.layers.s4 import S4
from dmm.models.entry import Facts, Model, Official, Source, domain, only
from dmm.policy import Outcome, Policy, Target, Wanted


@dataclass(frozen=True, kw_only=True)
class DS4Config:
    """A Decision S4. Its sizes are MADS4's, which need no others to compare with the frame's: on Hopper they make
    104,736 trained weights beside 99,907 of `mamba` and 124,099 of `dmm`."""

    state_size: int  # s
    action_size: int  # a
    context: int = 1000  # k time steps of a training window, which is meant to be the whole trajectory
    width: int = 96  # d channels
    layers: int = 3
    embedding: int = 128  # channels of each of the three embeddings of a time step
    ssm_state: int = 96  # n of S4, even
    residual: bool = False  # whether a layer adds its input
    layer_norm: bool = False  # whether a layer normalises its input
    train_dynamics: bool = False  # whether S4's dt, A and B are trained too, or C and D alone
    dropout: float = 0.0  # in front of the layers
    rtg_scale: float = 1000.0  # returns-to-go are divided by this

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(self, "state_size", "action_size", "context", "width", "layers", "embedding", "ssm_state")
        if self.ssm_state % 2:
            raise InputError(f"ssm_state: got {self.ssm_state}, allowed are even numbers")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: got {self.dropout:g}, allowed is 0 <= dropout < 1")
        if not 0 < self.rtg_scale < float("inf"):
            raise InputError(f"rtg_scale: got {self.rtg_scale:g}, allowed is a positive number")


class DS4Layer(nn.Module):
    """`gelu(W gelu(S4(LN? x)) + b) (+ x)`: `(b, k, d) -> (b, k, d)`; all channels share S4's `A` and `B`."""

    def __init__(self, config: DS4Config):
        super().__init__()
        d = config.width
        self.norm = nn.LayerNorm(d) if config.layer_norm else nn.Identity()
        self.ssm = S4(d, config.ssm_state, share=True, train_dynamics=config.train_dynamics)
        self.linear, self.residual = nn.Linear(d, d), config.residual

    def forward(self, x: Tensor) -> Tensor:
        return self._output(self.ssm(self.norm(x)), x)

    def init_state(self, batch: int) -> Tensor:
        """The state before the first time step: `(b, d, n)`."""
        return self.ssm.init_state(batch)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: `(b, d)`, state -> `(b, d)`, new state."""
        y, state = self.ssm.step(self.norm(x), state)
        return self._output(y, x), state

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        y = F.gelu(self.linear(F.gelu(y)))
        return x + y if self.residual else y


class DS4State(NamedTuple):
    """What is remembered of `n` episodes between two time steps."""

    target: Tensor
    """The return still asked for, `(n, 1)`."""
    action: Tensor
    """The action of the step before, `(n, a)`."""
    layers: tuple[Tensor, ...]
    """The state of each layer, `(n, d, n_s4)`."""

    def map(self, function: Callable[[Tensor], Tensor]) -> DS4State:
        """`function` of every tensor."""
        return DS4State(function(self.target), function(self.action), tuple(map(function, self.layers)))


class DecisionS4(Policy):
    """`HistoryWindows (b, k, ...) -> actions (b, k, a)`; steps that are padded must come last."""

    batch = HistoryWindows
    recurrent = True
    config: DS4Config

    def __init__(self, config: DS4Config):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config, d, e = config, config.width, config.embedding
        self.embed_state = nn.Linear(config.state_size, e)
        self.embed_action = nn.Linear(config.action_size, e)
        self.embed_rtg = nn.Linear(1, e)
        self.project_in, self.project_again = nn.Linear(3 * e, d), nn.Linear(d, d)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(DS4Layer(config) for _ in range(config.layers))
        self.head = nn.Linear(d, config.action_size, bias=False)

    def embed(self, states: Tensor, previous_actions: Tensor, returns_to_go: Tensor) -> Tensor:
        """One token for each time step: `(..., s)`, `(..., a)`, `(..., 1)`, raw -> `(..., d)`."""
        parts = (
            self.embed_state((states - self.state_mean) / self.state_std),
            self.embed_action(previous_actions),
            self.embed_rtg(returns_to_go / self.config.rtg_scale),
        )
        x = self.project_again(F.gelu(self.project_in(torch.cat(parts, dim=-1))))
        return self.dropout(x)  # type: ignore[no-any-return]

    def forward(self, windows: HistoryWindows) -> Tensor:
        """All time steps by convolution."""
        x = self.embed(windows.states, windows.previous_actions, windows.returns_to_go)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)  # type: ignore[no-any-return]

    def init_state(self, n: int, target: Target) -> DS4State:
        """The memory of `n` episodes, all zero but for the return asked for."""
        zeros = self.state_mean.new_zeros
        returns = torch.as_tensor(Wanted.of(target).returns).to(self.state_mean).expand(n)[:, None]
        layers = tuple(layer.init_state(n) for layer in self.layers)  # type: ignore[operator]
        return DS4State(returns.clone(), zeros(n, self.action_size), layers)

    @torch.no_grad()
    def act(self, state: DS4State, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, DS4State]:
        """One time step by recurrence; see `Policy.act`."""
        target = state.target
        if reward is not None:
            target = target - reward[:, None].to(target)
        x, after = self.embed(observation.to(target), state.action, target), []
        for layer, before in zip(self.layers, state.layers, strict=True):
            x, now = layer.step(x, before)  # type: ignore[operator]
            after.append(now)
        action = self.played(self.head(x))
        return action, DS4State(target, action, tuple(after))

    def select(self, state: DS4State, rows: Tensor) -> DS4State:
        """The memory of the episodes at these places."""
        return state.map(lambda field: field[rows])

    def next_episode(self, state: DS4State, rows: Tensor, target: Target, outcome: Outcome) -> DS4State:
        """These rows begin anew."""
        begun = iter(_tensors(self.init_state(len(rows), target)))
        return state.map(lambda field: field.index_copy(0, rows, next(begun)))


def _tensors(state: DS4State) -> list[Tensor]:
    return [state.target, state.action, *state.layers]


LONGEST = 4096
"""Steps of a window at most; longer trajectories are cut."""


class WholeTrajectories(WindowSampler):
    """Draws a trajectory in proportion to its length, and of it all steps from the first, where the context holds them;
    of a longer one `context` steps from a uniform start."""

    def draw(self, batches: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """Where the windows of the next batches begin: `(batches, b)`."""
        shape = (whole_number("batches", batches, 1), whole_number("batch_size", batch_size, 1))
        which, where = torch.rand((*shape, 2), generator=generator, dtype=torch.float64).unbind(dim=-1)
        inside = whole_share(which, torch.tensor(self.transitions))
        episode = torch.searchsorted(self._starts, inside, right=True) - 1
        return self._starts[episode] + whole_share(where, self._full[episode])


def whole_trajectories(trajectories: Trajectories, config: DS4Config, device: torch.device | str) -> WholeTrajectories:
    """The sampler of a config, padded on the right."""
    how: dict[str, Any] = {"batch": HistoryWindows, "pad": "right", "device": device}
    return WholeTrajectories(trajectories, config.context, generator=torch.Generator(), **how)


def _whole(facts: Facts) -> dict[str, Any]:
    """As many steps as the longest episode has, or as a run can be read back with."""
    return {"context": min(facts.longest, LONGEST)}


def _published(facts: Facts) -> dict[str, Any]:
    """MADS4's recipe. How long the authors train is not known: here it is 100,000 updates, as for the other models, of
    which MADS4's 10,000 of warm-up are a tenth. The scale of the kitchen's returns is not known either."""
    scales = {"antmaze": 0.33, "kitchen": 1.0, "mujoco": 1000.0}
    recipe = {"steps": 100_000, "batch_size": 64, "learning_rate": 1e-4, "warmup": 0.1, "weight_decay": 1e-4}
    return _whole(facts) | recipe | {"clip": 0.25, "rtg_scale": scales[domain(facts.env_id)]}


def _official_config(theirs: Mapping[str, Any]) -> DS4Config:
    """Their inputs are z-scored and scaled outside: `rtg_scale` is 1 unless it is given."""
    return DS4Config(
        state_size=theirs["state_size"],
        action_size=theirs["action_size"],
        context=theirs.get("context", theirs.get("length", 1000)),
        width=theirs["channels"],
        layers=theirs["layers"],
        embedding=theirs["embedding"],
        ssm_state=theirs["state"],
        residual=theirs.get("residual", False),
        layer_norm=theirs.get("layer_norm", False),
        rtg_scale=theirs.get("rtg_scale", 1.0),
    )


def _sources(policy: DecisionS4) -> dict[str, Source]:
    linear = {"embed_state": "state_encoder", "embed_action": "action_embeddings", "embed_rtg": "ret_emb"}
    linear |= {"project_in": "input_projection", "project_again": "beforeblock.1"}
    sources: dict[str, Source] = {"head.weight": "output_projection.weight"}
    for i, layer in enumerate(policy.layers):
        ours, theirs = f"layers.{i}", f"s4_mods.{i}"
        linear[f"{ours}.linear"] = f"{theirs}.afterblock.2"
        if not isinstance(layer.norm, nn.Identity):
            linear[f"{ours}.norm"] = f"{theirs}.beforeblock"
        ssm, kernel = f"{ours}.ssm", f"{theirs}.s4_mod_in.kernel.kernel"
        sources |= {f"{ssm}.log_dt": f"{kernel}.log_dt", f"{ssm}.A_imag": f"{kernel}.w_imag"}
        sources |= {f"{ssm}.log_A_real": f"{kernel}.log_w_real", f"{ssm}.D": (f"{theirs}.s4_mod_in.D", _first)}
        sources |= {f"{ssm}.{name}": (f"{kernel}.{name}", _first) for name in ("B", "C", "P")}
    return sources | {
        f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in linear.items() for part in ("weight", "bias")
    }


def _first(weight: Tensor) -> Tensor:
    """Of an axis of one: their heads, of which S4 has a single one here."""
    return only(weight)


MODEL = Model(
    name="ds4",
    policy=DecisionS4,
    config=DS4Config,
    description="Decision S4, a reconstruction: S4 as published, the frame from a successor's code",
    source="Bar-David et al. 2023, arXiv 2306.05167; state-spaces/s4@e757cef, ashmita695/MADS4@387e44c",
    defaults=_whole,
    published=_published,
    sampler=whole_trajectories,
    official=Official(config=_official_config, sources=_sources),
)
