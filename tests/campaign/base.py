"""What cases are copies of: a tiny data set, and a run on it that has all its files."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np

NAME = "mine/base-v0"
DATA = Path("sets/mine/base-v0/data")
SETTINGS = {
    "width": 8,
    "layers": 1,
    "context": 3,
    "ssm_state": 4,
    "batch_size": 4,
    "log_every": 2,
    "checkpoint_every": 2,
}
STEPS = 4
CANARY = """import os, pathlib
pathlib.Path(os.environ["CAMPAIGN_MARK"]).touch()
def call(*args, **kwargs):
    pathlib.Path(os.environ["CAMPAIGN_MARK"]).touch()
"""
"""A module that files name and that nothing may import."""


def make_base(folder: Path) -> None:
    """Data set, run and canary below `folder`."""
    from dmm.data.arrays import write_dataset
    from dmm.training import train

    os.environ["MINARI_DATASETS_PATH"] = str(folder / "sets")
    rng, n = np.random.default_rng(0), 24
    write_dataset(
        NAME,
        *(rng.normal(size=(n, 3)), rng.integers(0, 4, n), rng.normal(size=n), np.arange(n) % 6 == 5, np.zeros(n)),
        env_id="dmm/TMaze-v0",
        env_kwargs={"length": 5},
        reference=(0.0, 1.0),
        progress=False,
    )
    train(NAME, steps=STEPS, out=folder / "run", changes=SETTINGS, device="cpu", progress=False)
    (folder / "canary").mkdir()
    (folder / "canary" / "campaign_canary.py").write_text(CANARY)


def commands(target: str, rng: random.Random | None = None) -> list[list[str]]:
    """Those that read the run, or the data set; with `rng` one of them, seldom the one that draws pictures."""
    if rng is not None:
        most = commands(target)
        return rng.choices(most, weights=[1 if words[0] == "inspect" else 5 for words in most])
    changes = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    train = ["train", NAME, "--device", "cpu", *changes]
    inspect = ["inspect", "run", "--out", "seen", "--windows", "4"]
    if target == "run":
        return [
            ["evaluate", "run", "--episodes", "1"],
            inspect,
            ["export", "run", "--to", "policy.json"],
            [*train, "--steps", str(STEPS), "--out", "run", "--resume"],
        ]
    return [["datasets"], [*train, "--steps", "2", "--out", "new"], ["train", "mine/nothing-v0"], inspect]
