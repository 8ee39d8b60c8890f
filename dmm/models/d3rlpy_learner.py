"""What trains `dmm.models.value_based`: d3rlpy's networks, losses and updates on this package's batches.

Of d3rlpy (the `value-based` extra) only `impl.update` runs, one batch at a time: its own loop, data sets, logs, scalers,
schedulers and files, which are pickles, are not used. The actor's layers share their memory with the policy's, so that
an update of one is one of the other. Random numbers are torch's.

It is imported when the first learner is made, since it takes seconds and is not everywhere. Settings of the process that
it changes then are put back, and what it prints is dropped.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dmm.data.windows import TransitionWindows
from dmm.errors import InputError

EXTRA = 'pip install "decision-metamamba[value-based]"'


def load_d3rlpy(model: str) -> Any:
    """The package, for this model.

    Raises:
        InputError: it is not installed, or does not work here.
    """
    try:
        with _process_as_before(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return importlib.import_module("d3rlpy")
    except ImportError as error:
        reason = "" if error.name == "d3rlpy" else f" (it is there and cannot be imported: {error})"
        raise InputError(f"model: {model!r} needs d3rlpy: {EXTRA}{reason}") from None
    except ValueError as error:  # it looks at the versions of others
        raise InputError(f"model: {model!r} needs d3rlpy, which does not work here ({error}): {EXTRA}") from None


@contextmanager
def _process_as_before() -> Iterator[None]:
    """What is imported in here changes no environment variable, no random state and no precision, and warns of nothing.

    scikit-learn sets variables, and on CUDA d3rlpy turns on TensorFloat-32 and a compiler for all that is torch's.
    """
    variables, drawn, precision = dict(os.environ), random.getstate(), torch.get_float32_matmul_precision()
    compiler: Any = importlib.import_module("torch._dynamo.config") if torch.cuda.is_available() else None
    compiled = compiler and compiler.compiled_autograd
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
        random.setstate(drawn)
        torch.set_float32_matmul_precision(precision)
        if compiler is not None:
            compiler.compiled_autograd = compiled


class D3rlpyLearner:
    """`dmm.models.entry.Learner` over an algorithm of d3rlpy.

    Args:
        policy: of `dmm.models.value_based`, on its device; gets the actor's updates.
        impl: of an algorithm of these sizes.
        read: turns what an update reports into the policy's terms, those that it was made for.
    """

    def __init__(self, policy: Any, impl: Any, read: Any):
        self.policy, self.impl, self.read = policy, impl, read
        parts = vars(impl.modules)
        self.modules: dict[str, nn.Module] = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: part.optim for name, part in parts.items() if hasattr(part, "optim")
        }
        shared = self._share_actor()
        self.reported = torch.zeros(len(policy.terms), dtype=torch.float64)  # the last value of each term
        weights = {
            f"{part}.{name}": weight for part, m in self.modules.items() for name, weight in m.named_parameters()
        }
        self._tensors = {name: weight.data for name, weight in weights.items() if id(weight) not in shared}
        self._tensors |= _moments(self.optimizers, {id(weight): name for name, weight in weights.items()})
        self._tensors["terms"] = self.reported

    def _share_actor(self) -> set[int]:
        """Let d3rlpy's actor live in the policy's weights, its target begin there; which parameters these are."""
        layers = [layer for layer in self.modules["policy"].modules() if isinstance(layer, nn.Linear)]
        pairs = list(zip([*self.policy.hidden, self.policy.head], layers, strict=False))  # a spread may come behind
        for ours, theirs in pairs:
            theirs.weight.data, theirs.bias.data = ours.weight.data, ours.bias.data
        if (target := self.modules.get("targ_policy")) is not None:
            for copy, weight in zip(target.parameters(), self.modules["policy"].parameters(), strict=True):
                copy.data.copy_(weight.data)
        return {id(weight) for _, layer in pairs for weight in (layer.weight, layer.bias)}

    def update(self, batch: TransitionWindows, made: int, rate: float, done: float) -> Mapping[str, float]:
        """One update, see `Learner.update`; fields `(b, 1, .)`."""
        config = self.policy.config
        actor = rate * config.actor_rate * ((1 + math.cos(math.pi * done)) / 2 if self._falls() else 1.0)
        rates = {"actor_optim": actor, "temp_optim": rate * config.actor_rate}
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates.get(name, rate)
        found = self.read(self.impl.update(self.batch(batch), made))
        for place, name in enumerate(self.policy.terms):
            if name in found:
                self.reported[place] = found[name]
        return dict(zip(self.policy.terms, self.reported.tolist(), strict=True))

    def _falls(self) -> bool:
        return bool(getattr(self.policy.config, "cosine", False))

    @torch.no_grad()
    def batch(self, windows: TransitionWindows) -> Any:
        """d3rlpy's form of a batch: states and rewards as its networks are to see them."""
        config, rewards = self.policy.config, windows.rewards.flatten(0, 1)
        return importlib.import_module("d3rlpy").TorchMiniBatch(
            observations=self.policy.seen(windows.states.flatten(0, 1)),
            actions=windows.actions.flatten(0, 1),
            rewards=rewards * config.reward_scale + config.reward_shift,
            next_observations=self.policy.seen(windows.next_states.flatten(0, 1)),
            next_actions=torch.zeros_like(windows.actions.flatten(0, 1)),  # not used by these three
            returns_to_go=torch.zeros_like(rewards),  # nor are these
            terminals=windows.ended.flatten(0, 1),
            intervals=torch.ones_like(rewards),
            device=str(rewards.device),
        )

    def tensors(self) -> Mapping[str, Tensor]:
        """Critics, targets, what else is trained, and what the optimizers keep."""
        return self._tensors


def _moments(optimizers: Mapping[str, torch.optim.Optimizer], names: Mapping[int, str]) -> dict[str, Tensor]:
    """What optimizers keep for each weight, laid out before the first update as torch does it in that."""
    kept: dict[str, Tensor] = {}
    for optimizer_name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            for weight in group["params"]:
                zeros = {moment: torch.zeros_like(weight.data) for moment in ("exp_avg", "exp_avg_sq")}
                state = optimizer.state[weight] = {"step": torch.zeros(()), **zeros}
                kept |= {f"{optimizer_name}.{names[id(weight)]}.{moment}": value for moment, value in state.items()}
    return kept


@dataclass(frozen=True)
class _Learn:
    """Makes the learner of a policy: what an entry has as its `learner`."""

    def __call__(self, policy: Any, training: Any) -> D3rlpyLearner:
        """Of a policy before its first update.

        Args:
            policy: of `dmm.models.value_based`.
            training: a `TrainConfig`, whose optimizer all networks get; it clips the gradient of each by itself.

        Raises:
            InputError: actions that are discrete, or d3rlpy is not here.
        """
        if policy.discrete_actions:
            raise InputError(f"model: {self.name!r} wants continuous actions, those of these data are discrete")
        library, config = load_d3rlpy(self.name), policy.config
        device = str(policy.state_mean.device)
        algorithm = self.config(library, config, self._common(library, config, training)).create(device=device)
        algorithm.create_impl((config.state_size,), config.action_size)
        return D3rlpyLearner(policy, algorithm.impl, self.read)

    def _common(self, library: Any, config: Any, training: Any) -> dict[str, Any]:
        kinds = {"all": library.optimizers.AdamWFactory, "matrices": library.optimizers.GPTAdamWFactory}
        optimizer = kinds[training.decay](
            betas=(0.9, training.beta2),
            eps=training.epsilon,
            weight_decay=training.weight_decay,
            clip_grad_norm=training.clip or None,
        )
        hidden, encoder = [config.width] * config.layers, library.models.VectorEncoderFactory
        return {
            "batch_size": training.batch_size,
            "gamma": config.discount,
            "tau": config.target_rate,
            "actor_learning_rate": training.learning_rate,  # set anew in each update
            "critic_learning_rate": training.learning_rate,
            "actor_optim_factory": optimizer,
            "critic_optim_factory": optimizer,
            "actor_encoder_factory": encoder(hidden, dropout_rate=getattr(config, "dropout", 0.0) or None),
            "critic_encoder_factory": encoder(hidden),
        }

    @property
    def name(self) -> str:
        """Of the model."""
        raise NotImplementedError

    def config(self, library: Any, config: Any, common: dict[str, Any]) -> Any:
        """d3rlpy's config of this one."""
        raise NotImplementedError

    def read(self, reported: Mapping[str, float]) -> dict[str, float]:
        """The terms of what an update of d3rlpy reports."""
        raise NotImplementedError


@dataclass(frozen=True)
class LearnTD3BC(_Learn):
    """TD3+BC."""

    name = "td3bc"

    def config(self, library: Any, config: Any, common: dict[str, Any]) -> Any:
        """d3rlpy's config of this one."""
        return library.algos.TD3PlusBCConfig(
            **common,
            alpha=config.alpha,
            target_smoothing_sigma=config.noise,
            target_smoothing_clip=config.noise_clip,
            update_actor_interval=config.actor_every,
        )

    def read(self, reported: Mapping[str, float]) -> dict[str, float]:
        """Of the critics, and where the actor was updated what it has of value and of cloning."""
        if "bc_loss" not in reported:
            return {"critic": reported["critic_loss"]}
        cloning = reported["bc_loss"]
        return {"critic": reported["critic_loss"], "actor": reported["actor_loss"] - cloning, "cloning": cloning}


@dataclass(frozen=True)
class LearnCQL(_Learn):
    """CQL."""

    name = "cql"

    def config(self, library: Any, config: Any, common: dict[str, Any]) -> Any:
        """d3rlpy's config of this one."""
        rate = common["critic_learning_rate"]
        return library.algos.CQLConfig(
            **common,
            temp_learning_rate=rate,
            alpha_learning_rate=rate if config.gap else 0.0,  # 0 is without
            alpha_threshold=config.gap,
            conservative_weight=config.weight,
            n_action_samples=config.sampled_actions,
            max_q_backup=config.max_backup,
        )

    def read(self, reported: Mapping[str, float]) -> dict[str, float]:
        """Of the critics without and with what is conservative, and of the actor."""
        conservative = reported["conservative_loss"]
        critic = reported["critic_loss"] - conservative
        return {"critic": critic, "conservative": conservative, "actor": reported["actor_loss"]}


@dataclass(frozen=True)
class LearnIQL(_Learn):
    """IQL."""

    name = "iql"

    def config(self, library: Any, config: Any, common: dict[str, Any]) -> Any:
        """d3rlpy's config of this one."""
        return library.algos.IQLConfig(
            **common, expectile=config.expectile, weight_temp=config.beta, max_weight=config.largest_weight
        )

    def read(self, reported: Mapping[str, float]) -> dict[str, float]:
        """Of the critics, of the value and of the actor."""
        return {"critic": reported["q_loss"], "value": reported["v_loss"], "actor": reported["actor_loss"]}
