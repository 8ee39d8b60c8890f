"""One update of one policy, or of several that are stacked, as a program of tensors that never waits for the device.

    batch = gather(index);  loss = the sum of the policy's terms;  g = gradient;  g = g min(1, clip / |g|);  AdamW(g)

The trained weights of each seed are one row of a matrix `(S, p)`, and the policy's parameters are views of it. So
clipping and AdamW are a few operations on that matrix, whatever the number of layers, and on CUDA the whole update is
recorded once as a graph and replayed, which spares the processor some hundreds of launches per update.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dmm.data.windows import Sampler
from dmm.models.entry import Learner
from dmm.policy import Policy

ALIGNMENT = 32
"""Each weight begins at a multiple of this many numbers (128 bytes), as matrix kernels and memory like it."""
WARM_UP = 3
"""Updates that are made, and undone, before one is recorded: libraries set themselves up in the first."""

Losses = Callable[[Any], Mapping[str, Tensor]]
"""A batch `(S, b, ...)` to the loss's terms, by name, one number for each seed: `(S,)`."""


class Recipe(Protocol):
    """What the update needs to know of `dmm.training.TrainConfig`."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def epsilon(self) -> float: ...
    @property
    def decay(self) -> str: ...


class FlatWeights:
    """A policy's trained weights and what AdamW keeps for them, as vectors `(p,)`; the parameters become views.

    The moments have the names that `torch.optim.AdamW` gives them.
    """

    def __init__(self, policy: nn.Module):
        self.parameters = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
        self.slots, size = aligned_slots([weight.numel() for weight in self.parameters.values()])
        first = next(iter(self.parameters.values()))
        vectors = {name: first.new_zeros(size, requires_grad=False) for name in ("weights", "exp_avg", "exp_avg_sq")}
        for weight, slot in zip(self.parameters.values(), self.slots, strict=True):
            vectors["weights"][slot] = weight.detach().flatten()
        self.move(vectors, torch.zeros((), device=first.device))

    def move(self, vectors: dict[str, Tensor], step: Tensor) -> None:
        """Live in these vectors from now on; `step` is the number of updates made."""
        self.vectors, self.step = vectors, step
        for weight, slot in zip(self.parameters.values(), self.slots, strict=True):
            weight.data = vectors["weights"][slot].view(weight.shape)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """What AdamW keeps, by the parameter's name; not copies, but what the next update reads and writes."""
        return {
            name: {"step": self.step}
            | {moment: self.vectors[moment][slot].view(weight.shape) for moment in ("exp_avg", "exp_avg_sq")}
            for (name, weight), slot in zip(self.parameters.items(), self.slots, strict=True)
        }

    def release(self) -> None:
        """Give each parameter memory of its own again."""
        for weight in self.parameters.values():
            weight.data = weight.data.clone()


def aligned_slots(sizes: Sequence[int]) -> tuple[list[slice], int]:
    """Where vectors of these sizes lie in one, each at a multiple of `ALIGNMENT`, and the size of that one."""
    places, begin = [], 0
    for size in sizes:
        places.append(slice(begin, begin + size))
        begin += size + -size % ALIGNMENT
    return places, begin


def learning_rate(config: Recipe, step: int) -> float:
    """Of the update after `step` others: rises linearly over the first part of the run, then stays."""
    warm_up = config.warmup * config.steps
    return config.learning_rate * min(1.0, (step + 1) / warm_up if warm_up else 1.0)


class Update:
    """`update(index)` makes one update on what was drawn, `(S, b, ...)`, and adds the loss's terms to `total (T, S)`.

    Args:
        flats: the weights of each seed; they move into the rows of the matrices that AdamW works on.
        policy: what computes the losses: the policy of the one seed, or the stack of all, whose weights become views
            of the same matrices.
        losses: see `Losses`.
        sampler: on the policies' device.
        config: see `Recipe`.
        generators: what the policies' dropout draws from.
        terms: the names of the loss's terms, in the order of `total`.
    """

    def __init__(
        self,
        flats: Sequence[FlatWeights],
        policy: nn.Module,
        losses: Losses,
        sampler: Sampler,
        config: Recipe,
        generators: Sequence[torch.Generator],
        terms: Sequence[str] = ("action",),
    ):
        self.terms = tuple(terms)
        self.losses, self.sampler, self.config, self.generators = losses, sampler, config, generators
        self.slots, self.step = flats[0].slots, flats[0].step
        self.rows = {name: torch.stack([flat.vectors[name] for flat in flats]) for name in flats[0].vectors}  # (S, p)
        for seed, flat in enumerate(flats):
            flat.move({name: matrix[seed] for name, matrix in self.rows.items()}, self.step)
        self.trained = [weight for weight in policy.parameters() if weight.requires_grad]
        self.frozen = [w for w in (*policy.parameters(), *policy.buffers()) if not w.requires_grad]
        self.after_update = policy.after_update if isinstance(policy, Policy) else None
        for weight, slot in zip(self.trained, self.slots, strict=True):
            weight.data = self.rows["weights"][:, slot].view(weight.shape)
        self.total = torch.zeros(len(self.terms), len(flats), device=self.step.device)
        self.decayed = self._decayed_part(flats[0])
        self.rate = torch.full_like(self.step, config.learning_rate)
        self.weights = nn.Parameter(self.rows["weights"])
        self.optimizer = self._make_optimizer()

    def __call__(self, index: Tensor) -> None:
        found = self.losses(self.sampler.gather(index))
        losses = torch.stack([found[name] for name in self.terms])  # (T, S)
        gradients = torch.autograd.grad(losses.sum(), self.trained, allow_unused=True, materialize_grads=True)
        self.weights.grad = self._clipped(gradients)
        self._set_rate()
        if self.decayed is not None:
            self.weights.data.mul_(1 - self.rate * self.config.weight_decay * self.decayed)
        self.optimizer.step()
        if self.after_update is not None:
            self.after_update()
        self.total += losses.detach()

    def finite(self) -> list[bool]:
        """Whether all weights are, for each seed."""
        return self.rows["weights"].isfinite().all(dim=1).tolist()

    def state(self) -> list[Tensor]:
        """All that an update changes beside the generators, as it is now; not copies."""
        return [*self.rows.values(), *self.frozen, self.step, self.total]

    def _make_optimizer(self) -> torch.optim.AdamW:
        config = self.config
        optimizer = torch.optim.AdamW(
            [self.weights],
            lr=self.rate,
            betas=(0.9, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay if self.decayed is None else 0.0,
            fused=True,
            capturable=self.step.is_cuda,
        )
        moments = {name: matrix for name, matrix in self.rows.items() if name != "weights"}
        optimizer.state[self.weights] = {"step": self.step} | moments
        return optimizer

    def _decayed_part(self, flat: FlatWeights) -> Tensor | None:
        """1 for the weights that decay, `(p,)`; None where all do."""
        if self.config.decay == "all":
            return None
        part = torch.zeros_like(self.rows["weights"][0])
        for weight, slot in zip(flat.parameters.values(), self.slots, strict=True):
            part[slot] = float(weight.ndim > 1)
        return part

    def _clipped(self, gradients: Sequence[Tensor]) -> Tensor:
        """`(S, p)`, each row of norm `clip` at most, as `torch.nn.utils.clip_grad_norm_` does it; 0 leaves them."""
        seeds, parts = self.total.shape[1], []
        for gradient, slot in zip(gradients, self.slots, strict=True):
            parts.append(gradient.reshape(seeds, -1))
            if gap := -slot.stop % ALIGNMENT:
                parts.append(gradient.new_zeros(seeds, gap))
        flat = torch.cat(parts, dim=1)
        if not self.config.clip:
            return flat
        norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        return flat.mul_((self.config.clip / (norms + 1e-6)).clamp_(max=1.0))

    def _set_rate(self) -> None:
        """`learning_rate` for a step that only the device knows."""
        warm_up = self.config.warmup * self.config.steps
        if warm_up:
            torch.mul(((self.step + 1) / warm_up).clamp_(max=1.0), self.config.learning_rate, out=self.rate)


class LearnedUpdate:
    """The same for one policy whose updates are a learner's own: `update(index)` for `(1, b, ...)`, `total (T, 1)`.

    Args:
        policy: what is trained.
        learner: what trains it, and holds all else that is trained.
        sampler: on the policy's device.
        config: see `Recipe`.
        made: updates made before.
    """

    def __init__(self, policy: Policy, learner: Learner, sampler: Sampler, config: Recipe, made: int):
        self.policy, self.learner, self.sampler, self.config, self.made = policy, learner, sampler, config, made
        self.total = torch.zeros(len(policy.terms), 1, dtype=torch.float64)

    def __call__(self, index: Tensor) -> None:
        done = min(1.0, self.made / self.config.steps)
        rate = learning_rate(self.config, self.made)
        terms = self.learner.update(self.sampler.gather(index[0]), self.made, rate, done)
        self.made += 1
        self.total += torch.tensor([[terms[name]] for name in self.policy.terms], dtype=torch.float64)

    def finite(self) -> list[bool]:
        """Whether all weights are."""
        tensors = [*self.policy.parameters(), *self.learner.tensors().values()]
        return [all(bool(tensor.isfinite().all()) for tensor in tensors)]


@contextmanager
def undone(update: Update) -> Iterator[None]:
    """What is updated in here leaves no trace: weights, moments, step, losses and generators come back bit for bit."""
    tensors = [tensor.clone() for tensor in update.state()]
    generators = [generator.get_state() for generator in update.generators]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(update.state(), tensors, strict=True):
                tensor.copy_(before)
        for generator, state in zip(update.generators, generators, strict=True):
            generator.set_state(state)


class RecordedUpdate:
    """The same update as one CUDA graph: recorded once for indices of one shape, replayed in each call."""

    def __init__(self, update: Update, first: Tensor):
        self.first = torch.zeros_like(first)
        self.graph = torch.cuda.CUDAGraph()
        for generator in update.generators:
            self.graph.register_generator_state(generator)
        with torch.cuda.device(first.device), undone(update):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside), warnings.catch_warnings():
                # AdamW's, that it was made for graphs and is not in one
                warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.optim")
                for _ in range(WARM_UP):
                    update(self.first)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self.graph, stream=aside):  # torch's own stream may be another device's
                update(self.first)

    def __call__(self, first: Tensor) -> None:
        self.first.copy_(first)
        self.graph.replay()


def fastest(update: Update | LearnedUpdate, first: Tensor) -> Callable[[Tensor], None]:
    """What makes such an update on indices of the shape of `first`: on CUDA a recording of one of AdamW's, else itself."""
    return RecordedUpdate(update, first) if first.is_cuda and isinstance(update, Update) else update
