"""Settings for running the notebooks as tests (nbval): every cell's stored output must come out again."""

from __future__ import annotations

import os
from pathlib import Path

# A notebook run by hand gets the same settings as under make.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MINARI_DATASETS_PATH", str(Path(__file__).resolve().parents[1] / ".cache" / "minari"))
