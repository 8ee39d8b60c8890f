"""Settings for running the notebooks as tests (nbval): every cell's stored output must come out again."""

from __future__ import annotations

import os
import time
from pathlib import Path
from queue import Empty
from typing import Any

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
_plain_get_message = RunningKernel.get_message


def _get_message(kernel: RunningKernel, stream: str, timeout: float | None = None) -> Any:
    # nbval waits for the reply of a kernel that has died as long as for that of a slow one, half an hour.
    end = time.monotonic() + (float("inf") if timeout is None else timeout)
    while True:
        try:
            left = max(0.0, end - time.monotonic())
            return _plain_get_message(kernel, stream, timeout=min(2.0, left))
        except Empty:
            if not kernel.is_alive():
                raise RuntimeError("the kernel died while this cell ran") from None
            if time.monotonic() >= end:
                raise


RunningKernel.get_message = _get_message
