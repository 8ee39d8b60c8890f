"""One campaign: cases made, commands run, faults collected."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaign.base import commands, make_base
from tests.campaign.judge import Worker, judge
from tests.campaign.mutations import mutate


@dataclass
class Report:
    """What a campaign saw."""

    cases: int = 0
    commands: int = 0
    longest: float = 0.0
    codes: Counter[int | None] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def play(folder: Path, numbers: Iterable[int], seed: int, *, every: bool = False, progress: bool = False) -> Report:
    """Make the mutations of these numbers below `folder`, each the same whatever the others, and run commands on them.

    Args:
        folder: an empty one.
        numbers: of the mutations.
        seed: of all of them.
        every: run each command that reads what was changed, not just one.
        progress: print faults as they come.
    """
    base, report = folder / "base", Report()
    base.mkdir()
    make_base(base)
    worker = Worker(base)
    try:
        for number in numbers:
            case = folder / f"case{number}"
            shutil.copytree(base, case)
            rng = random.Random(f"{seed}/{number}")
            about, said = mutate(rng, case)
            report.cases += 1
            for words in commands(about, None if every else rng):
                outcome = worker.run(case, words)
                report.commands += 1
                report.codes[outcome.code] += 1
                report.longest = max(report.longest, outcome.seconds)
                fault = judge(outcome, case)
                if fault is not None:
                    (case / "called").unlink(missing_ok=True)
                    report.faults.append(f"{number} ({ascii(said)[:120]}), {' '.join(words[:2])}: {fault}")
                    if progress:
                        print(report.faults[-1], flush=True)
            shutil.rmtree(case, ignore_errors=True)
    finally:
        worker.close()
    return report
