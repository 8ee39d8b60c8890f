"""The loop: runs that stand at the same step, updated together, with their logs and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmm.policy import Policy
from dmm.training.memory import keep_freed_memory
from dmm.training.plan import Plan
from dmm.training.run import SeedRun, dropout_generator
from dmm.training.update import LearnedUpdate, Update, fastest


class Loop:
    """Runs that stand at the same step, and what moves them on.

    Args:
        runs: of one or several seeds.
        policy: that of the one run, or the stack of all.
        plan: what they have in common.
    """

    def __init__(self, runs: Sequence[SeedRun], policy: Policy, plan: Plan):
        self.runs, self.policy, self.config, self.step = runs, policy.train(), plan.config, runs[0].step
        self.sampler, self.logged, self.device = plan.sampler, self.step, plan.device
        dropout = [run.generators[dropout_generator(plan.device)] for run in runs]
        flats = [run.flat for run in runs]
        recipe, learner = runs[0].recipe, runs[0].learner
        self.update: Update | LearnedUpdate
        if learner is None:
            self.update = Update(flats, policy, policy.loss, self.sampler, recipe, dropout, policy.terms)
        else:  # of one run
            self.update = LearnedUpdate(policy, learner, self.sampler, recipe, self.step)

    def run(self, until: int, bar: Any) -> None:
        """Update up to this step, logging and saving on the way."""
        keep_freed_memory()
        began, make = time.perf_counter(), None
        while self.step < until:
            block = self._draw(until)
            make = make or fastest(self.update, block[0])
            for first in block:
                make(first)
                bar.update()
            self.step += len(block)
            for run in self.runs:
                run.step = self.step
            if self._due(self.config.log_every):
                now = time.perf_counter()
                self._log(now - began)
                began = now
                bar.set_postfix(loss=f"{np.mean([run.rows[-1][1] for run in self.runs]):.4f}")
            self._write()

    def _draw(self, until: int) -> Tensor:
        """Where windows begin, `(updates, S, b)`, for all updates up to the next one that something is written after.

        Each seed's are the numbers of its own generator on the CPU, the same on every device, and move there at once.
        """
        config = self.config
        every = [config.log_every, config.keep_every or until]
        updates = min(until, *(self.step - self.step % n + n for n in every)) - self.step
        drawn = [self.sampler.draw(updates, config.batch_size, run.generators["sampler"]) for run in self.runs]
        return torch.stack(drawn, dim=1).to(self.device)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _log(self, seconds: float) -> None:
        count, self.logged = self.step - self.logged, self.step
        terms = (self.update.total / count).T.tolist()  # of each run
        self.update.total.zero_()
        for run, parts in zip(self.runs, terms, strict=True):
            loss = sum(parts)
            if not np.isfinite(loss):
                run.diverged(f"loss{run.name}: {loss} between steps {self.step - count + 1} and {self.step}")
            run.seconds += seconds
            run.log(loss, parts if len(parts) > 1 else ())

    def _write(self) -> None:
        keep = self.config.keep_every and self.step % self.config.keep_every == 0
        save = self._due(self.config.checkpoint_every)
        if keep or save:
            self._require_finite_weights()
        for run in self.runs:
            if keep:
                run.keep()
            if save:
                run.save()

    def _require_finite_weights(self) -> None:
        for run, sound in zip(self.runs, self.update.finite(), strict=True):
            if not sound:
                run.diverged(f"weights{run.name}: not finite after step {self.step}")
