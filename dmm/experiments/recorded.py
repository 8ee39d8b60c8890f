"""Windows of the Hopper task that are kept as a file, so that they are the same ones on every machine.

    python -m dmm.experiments.recorded

Recording draws on the processor: another kind adds the products of a layer in another order, the last bit of an action
differs, and after some hundred steps a hopping robot is somewhere else. Whoever measures a policy on windows, and
compares the numbers with stored ones, needs the very same windows.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "recordings"


def recorded_windows(task: str, name: str) -> Any:
    """The committed `Windows` of a task by their name, None where the file has none."""
    import torch

    from dmm.data.windows import Windows

    file = FOLDER / f"{task}.npz"
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        names = [f"{name}.{field.name}" for field in fields(Windows)]
        return Windows(*(torch.from_numpy(arrays[key]) for key in names)) if set(names) <= set(arrays.files) else None


def write_recording(task: str, windows: dict[str, Any]) -> Path:
    """Keep windows of a task, by name, as one `.npz` of plain arrays."""
    arrays = {
        f"{name}.{field.name}": getattr(own, field.name).numpy()
        for name, own in windows.items()
        for field in fields(own)
    }
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / f"{task}.npz", **arrays)
    return FOLDER / f"{task}.npz"


def main() -> None:
    from dmm.experiments import gating

    print(write_recording("hopper", gating.draw_windows("hopper")))


if __name__ == "__main__":
    main()
