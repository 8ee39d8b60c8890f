"""Acting with a trained policy in one of several ways, behind one switch.

`window`: at each step a parallel forward over the last `K` time steps, as the paper evaluates; `Policy.act`.

`recurrent`: the same model as the recurrence that it is. One state per episode, never reset, takes in the tokens of
each new time step; the cost of a step does not depend on `K`. The actions are those of one parallel forward over the
whole episode so far, of which training has never seen more than `K` steps at once. Where no action depends on more
tokens than a window has, as in a Decision ConvFormer of the usual sizes, they are those of the window.

`staggered`: `m` states per episode, each restarted every `K` steps, `K / m` apart; the action is read off the oldest.
So every action is that of a parallel forward over the last `K - K/m + 1` to `K` steps, lengths that training has seen,
at a cost that does not grow with `K` either. `m = K` gives the actions of the window, `m = 1` forgets all at once.

`cached`: for models that act across the episodes of a task with attention (`dmm.models.across`). The keys and values of
the steps before are remembered, and a step's cost grows with their number only by what looking at them takes. The
actions are those of the window; once it is full it is read anew.

With `recurrent` and `staggered` an episode begins as its window does: behind `K - 1` padded steps, which the states
have taken in beforehand. Where the model embeds time steps, each token has that of its own step in the episode; those
of padding have the first. Policies whose `act` is itself a recurrence begin in their own way.

Axes: `n` episodes, `m` states of each, `d` channels, `s` state size, `a` action size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import one_hot

from dmm.errors import InputError, require_choice, whole_number
from dmm.fused import Cell
from dmm.models.across import AcrossEpisodes, CachedActor
from dmm.models.frame import TokenPolicy
from dmm.policy import Policy, Target, Wanted

Acting = Literal["window", "recurrent", "staggered", "cached"]
ACTING: tuple[str, ...] = get_args(Acting)
STATES = 4
"""`m` of the staggered states, unless said otherwise."""


class Actor(Protocol):
    """What plays episodes, `n` at once; `dmm.policy.Policy` is one."""

    def init_state(self, n: int, target: Target) -> Any:
        """The memory of `n` episodes of which `target` is asked, before their first observation."""

    def act(self, state: Any, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Any]:
        """One time step: observation `(n, s)`, reward of the step before `(n,)` -> action `(n, a)`, new memory."""

    def select(self, state: Any, rows: Tensor) -> Any:
        """The memory of some of the episodes; `rows` are their places in the batch, int64."""


def make_actor(policy: Policy, acting: str = "window", states: int = STATES) -> Actor:
    """The policy, acting in one of these ways, without dropout.

    `window` is the policy itself; the other ways go on with the weights that it has now.

    Args:
        policy: a trained policy; for `recurrent` and `staggered` its blocks must be recurrences. One whose own `act`
            is a recurrence (`Policy.recurrent`) is served by `recurrent` as by `window`, with its weights frozen.
        acting: `window`, `recurrent`, `staggered` or `cached`, which wants a policy of `dmm.models.across`.
        states: `m`, a divisor of the policy's context; `staggered` alone has them.

    Raises:
        InputError: another way, a policy without a recurrence, or a number of states that does not divide the context.
    """
    require_choice("acting", acting, Acting)
    if acting == "window":
        return copy.deepcopy(policy).eval() if policy.training else policy
    if acting == "cached":
        return _cached(policy)
    if acting == "recurrent" and policy.recurrent:
        return cast(Policy, _frozen(policy))
    _require_recurrence(policy, acting)
    recurrent = cast(TokenPolicy, policy)
    return RecurrentActor(recurrent) if acting == "recurrent" else StaggeredActor(recurrent, states)


def _cached(policy: Policy) -> CachedActor:
    if not isinstance(policy, AcrossEpisodes):
        raise InputError(
            f"acting: got 'cached' for a {type(policy).__name__}, allowed are ad and at, which have a cache"
        )
    if policy.context < 2:
        raise InputError(f"acting: got 'cached' for a window of {policy.context} step, allowed are 2 or more")
    return CachedActor(_frozen(policy))


def _require_recurrence(policy: Policy, acting: str) -> None:
    frame = isinstance(policy, TokenPolicy) and not _overrides(policy)
    if not frame or not all(_is_recurrence(block) for block in cast(TokenPolicy, policy).blocks):
        raise InputError(
            f"acting: got {acting!r} for a {type(policy).__name__}, which is no recurrence over its tokens; "
            f"allowed is {'window and recurrent' if policy.recurrent else 'window'}"
        )


def _is_recurrence(block: Any) -> bool:
    return hasattr(block, "extend") and all(hasattr(part, "extend") for part in block.parts().values())


def _frozen(policy: Any) -> Any:
    """A copy for acting, whose layers work out once what all steps have in common."""
    made = copy.deepcopy(policy).eval().requires_grad_(False)
    for module in made.modules():
        if hasattr(module, "freeze"):
            module.freeze()
    return made


OWN = ("forward", "embed", "mix", "decode", "newest", "init_state", "act")
"""Methods of the frame that a recurrent actor stands in for."""


def _overrides(policy: TokenPolicy) -> bool:
    """Whether a policy does something of its own with its tokens, such as a timestep embedding or attention masks."""
    return any(getattr(type(policy), name) is not getattr(TokenPolicy, name) for name in OWN)


class Memory(NamedTuple):
    """What a `RecurrentActor` remembers of `n` episodes between two time steps."""

    target: Tensor
    """The return still asked for, `(n, 1)`."""
    action: Tensor
    """The action of the step before, `(n, a)`."""
    clock: int
    """Steps so far, those of the padding included."""
    blocks: tuple[Any, ...]
    """The state of each block, in tensors `(m n, ., .)`: first the first state of every episode, then the second ..."""


class RecurrentActor:
    """One state per episode, begun with the padding of a window and never reset.

    A time step takes in the tokens that follow the state token of the step before (the action, where it is a token),
    then those up to its own: the return-to-go, the state.

    Args:
        policy: whose blocks are recurrences.
        padding: whether an episode begins behind padding, as its window does; without it, behind nothing at all.
    """

    states = 1

    def __init__(self, policy: TokenPolicy, padding: bool = True):
        self.policy = _frozen(policy)
        self.context, self.discrete_actions = policy.context, policy.discrete_actions
        self.mean, self.std, self.rtg_scale = self.policy.state_mean, self.policy.state_std, policy.config.rtg_scale
        own = self.policy.TOKENS.index("state") + 1
        self.late = len(self.policy.TOKENS) - own  # tokens of the step before
        self.order = self.policy.TOKENS[own:] + self.policy.TOKENS[:own]
        self.embedding, self.blocks = self._embedding(), [_cell(block) for block in self.policy.blocks]
        self.head = (self.policy.head.weight, self.policy.head.bias)
        self.start: Memory | None = None
        self.start = self.beginning() if padding else self.nothing()

    def init_state(self, n: int, target: Target) -> Memory:
        """The memory of `n` episodes before their first step."""
        rows = torch.zeros(n, dtype=torch.int64, device=self.policy.state_mean.device)
        assert self.start is not None
        memory = self.select(self.start, rows)
        wanted = torch.as_tensor(Wanted.of(target).returns).to(memory.target)
        return memory._replace(target=memory.target + wanted.expand(n)[:, None])

    @torch.inference_mode()
    def act(self, state: Memory, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Memory]:
        """One time step of `n` episodes: observation `(n, s)` -> action `(n, a)`, new memory; see `Policy.act`.

        What it returns are inference tensors: clone them to change them.
        """
        target = state.target
        if reward is not None:
            target = target - reward[:, None].to(target)
        seen = (observation.to(target) - self.mean) / self.std
        x, blocks = self._extend(state, target / self.rtg_scale, seen)
        action = torch.tanh(F.linear(self.policy.norm(x), *self.head))
        if self.discrete_actions:  # what is played, and what later steps see, is one-hot as in the data
            action = one_hot(action.argmax(dim=-1), self.policy.action_size).to(action)
        return action, Memory(target, action, state.clock + 1, blocks)

    @torch.inference_mode()
    def select(self, state: Memory, rows: Tensor) -> Memory:
        """The memory of the episodes at these places."""
        n = len(state.target)
        every = (torch.arange(self.states, device=rows.device)[:, None] * n + rows).flatten()
        blocks = _map(lambda tensor: tensor[every], state.blocks)
        return Memory(state.target[rows], state.action[rows], state.clock, blocks)

    def oldest(self, clock: int) -> int:
        """The state that the action of this step is read off."""
        return 0

    def restart(self, memory: Memory) -> tuple[tuple[Any, ...], Tensor | None]:
        """The states of the blocks at the start of a step, and which of its tokens they see: `(m n, t)`, None for all.

        This state is never restarted.
        """
        return memory.blocks, None

    def _extend(self, memory: Memory, rtg: Tensor, seen: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """Take in one time step; returns what the blocks make of the state token `(n, d)` and their new states."""
        n, (blocks, present) = len(rtg), self.restart(memory)
        given = {"rtg": rtg, "state": seen, "action": memory.action}
        tokens = F.linear(torch.cat([given[name] for name in self.order], dim=1), *self.embedding)
        tokens = tokens.view(n, len(self.order), self.policy.config.width)
        if self.policy.embed_timestep is not None:
            tokens = tokens + self._times(self.policy.embed_timestep.weight, memory.clock)
        x = self.policy.embed_norm(tokens if memory.clock else tokens[:, self.late :])  # nothing is before the first
        if self.states > 1:
            x = x.expand(self.states, *x.shape).flatten(0, 1)  # (m n, 3, d)
        after, first = [], self.oldest(memory.clock) * n
        for block, state in zip(self.blocks[:-1], blocks[:-1], strict=True):
            x, state = block.extend(x, state, present)
            after.append(state)
        x, state = self.blocks[-1].newest(x, blocks[-1], present, slice(first, first + n))
        return x, (*after, state)

    def _times(self, table: Tensor, clock: int) -> Tensor:
        """The embeddings `(t, d)` of the time steps that the tokens of one step belong to."""
        now = clock - self.start.clock if self.start is not None else 0  # padding has the first step's
        steps = [now - 1] * self.late + [now] * (len(self.order) - self.late)
        return torch.stack([table[min(max(step, 0), len(table) - 1)] for step in steps])

    def _embedding(self) -> tuple[Tensor, Tensor]:
        """One linear map of what a step takes in, such as `(action, return-to-go, state)`, to its tokens `(n, t d)`."""
        embeddings = self.policy.embeddings()
        layers = [embeddings[name] for name in self.order]
        weights = torch.block_diag(*(layer.weight for layer in layers))  # type: ignore[no-untyped-call]
        return weights, torch.cat([layer.bias for layer in layers])

    @torch.inference_mode()
    def beginning(self) -> Memory:
        """The memory of one episode behind its padding, asked for nothing."""
        memory = self.nothing()
        unseen = memory.target.new_zeros(1, self.policy.state_size)
        while memory.clock < self.context - 1:
            _, blocks = self._extend(memory, memory.target, unseen)
            memory = memory._replace(clock=memory.clock + 1, blocks=blocks)
        return memory

    def nothing(self) -> Memory:
        """The memory of one episode that has seen nothing, not even padding, and is asked for nothing."""
        zeros = self.policy.state_mean.new_zeros
        blocks = tuple(cast(Any, block).init_state(self.states) for block in self.policy.blocks)
        return Memory(zeros(1, 1), zeros(1, self.policy.action_size), 0, blocks)


class StaggeredActor(RecurrentActor):
    """`states` states per episode, each restarted every `context` steps, at equal distances; the oldest acts.

    Restarts are counted from the first padded step, so that the first action sees the whole padding, as in the window.

    Raises:
        InputError: `states` does not divide the context.
    """

    def __init__(self, policy: TokenPolicy, states: int = STATES):
        states = whole_number("states", states, None)
        if states < 1 or policy.context % states:
            divisors = [m for m in range(1, policy.context + 1) if policy.context % m == 0]
            raise InputError(
                f"states: got {states}, allowed are the divisors of the context {policy.context}: "
                f"{', '.join(map(str, divisors))}"
            )
        self.states, self.spacing = states, policy.context // states
        super().__init__(policy)

    def oldest(self, clock: int) -> int:
        """Of the last restarts, the earliest that lies less than `context` steps back."""
        return max(0, clock - self.context + self.spacing) // self.spacing % self.states

    def restart(self, memory: Memory) -> tuple[tuple[Any, ...], Tensor | None]:
        """At every `spacing`-th step one of the states begins anew, and sees nothing of the step before."""
        if memory.clock == 0 or memory.clock % self.spacing:
            return memory.blocks, None
        n = len(memory.target)
        newest = slice(first := memory.clock // self.spacing % self.states * n, first + n)
        present = memory.target.new_ones(self.states * n, len(self.order))
        present[newest, : self.late] = 0
        kept = torch.ones_like(present[:, :1, None])
        kept[newest] = 0
        blocks = _map(lambda tensor: tensor * kept if tensor.numel() else tensor, memory.blocks)
        return blocks, present if self.late else None


def _cell(block: Any) -> Cell:
    """What `block.extend` is, with the weights of now: of the block's own making, unless a sub-class has changed it."""
    maker = next((kind for kind in type(block).__mro__ if "extend" in vars(kind)), None)
    return block.cell() if maker is not None and "cell" in vars(maker) else Cell(block)  # type: ignore[no-any-return]


def _map(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """`function` of every tensor in a block's state, which is made of tensors, numbers and (named) tuples of them."""
    if isinstance(state, Tensor):
        return function(state)
    if not isinstance(state, tuple):
        return state
    parts = [_map(function, part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
