"""The campaign by hand: `python -m tests.campaign --mutations 600 --seed 3`; ends with 1 if anything was wrong."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.campaign.play import play


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this mutation alone")
    parser.add_argument("--every", action="store_true", help="each command on each mutation, not just one")
    given = parser.parse_args()
    numbers = range(given.mutations) if given.only is None else [given.only]
    with tempfile.TemporaryDirectory() as folder:
        report = play(Path(folder), numbers, given.seed, every=given.every, progress=True)
    print(f"{report.cases} mutations, {report.commands} commands, exit codes {dict(sorted(report.codes.items()))}")
    print(f"longest {report.longest:.1f} s; {len(report.faults)} faults")
    return bool(report.faults)


if __name__ == "__main__":
    sys.exit(main())
