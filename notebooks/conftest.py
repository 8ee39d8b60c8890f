"""Settings for running the notebooks as tests (nbval): every cell's stored output must come out again."""

from __future__ import annotations

import os
from pathlib import Path

from nbval.kernel import RunningKernel

# A notebook run by hand gets the same settings as under make.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "MINARI_DATASETS_PATH", str(Path(__file__).resolve().parents[1] / ".cache" / "minari")
)


def _execute(
    kernel: RunningKernel, cell_input: str, allow_stdin: bool | None = None
) -> str:
    # nbval runs cells without history, and IPython then ignores the semicolon that silences a cell's last expression.
    message: str = kernel.kc.execute(
        cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False
    )
    return message


RunningKernel.execute_cell_input = _execute
