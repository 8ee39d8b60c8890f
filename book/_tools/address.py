"""Tell every file the repository's public address.

`_config.yml` holds it once (`repository.url`). The files in FILES repeat it, because they are read where nothing can
look it up: README, package metadata, citation, the notebooks' Colab links and set-up cells.

    python book/_tools/address.py https://github.com/you/your-name-for-it    rewrites them all
    python book/_tools/address.py --check                                      prints the lines that disagree, exits 1
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "README.md",
    "pyproject.toml",
    "CITATION.cff",
    "book/**/*.md",
    "book/_tools/setup_cell.py",
    "notebooks/**/*.ipynb",
)

# The authors' own release has the same name under their account; "you" stands for any account in examples.
OTHERS = {"too-z", "you"}

_CONFIG_LINE = re.compile(r"^(repository:\n\s+url:\s*)(\S+)", re.MULTILINE)
_ADDRESS = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+)")


def configured(root: Path = ROOT) -> tuple[str, str]:
    """Owner and repository name, as `_config.yml` gives them."""
    found = _CONFIG_LINE.search((root / "_config.yml").read_text("utf8"))
    match = _ADDRESS.fullmatch(found.group(2)) if found else None
    if match is None:
        raise SystemExit("_config.yml: repository.url must look like https://github.com/OWNER/NAME")
    return match.group(1), match.group(2)


def dependants(root: Path = ROOT) -> list[Path]:
    """The files that repeat the address."""
    return sorted(path for pattern in FILES for path in root.glob(pattern))


def disagreements(root: Path = ROOT) -> list[str]:
    """Places that name this repository at another address than the configured one."""
    owner, name = configured(root)
    own = re.compile(
        rf"(?:github\.com|colab\.research\.google\.com/github)/([\w.-]+)/(decision-metamamba|{re.escape(name)})\b"
    )
    pages = re.compile(rf"https://([\w-]+)\.github\.io/(decision-metamamba|{re.escape(name)})\b")
    wrong = []
    for path in dependants(root):
        text = path.read_text("utf8")
        for match in own.finditer(text):
            if match.group(1) not in OTHERS and match.groups() != (owner, name):
                wrong.append(f"{path.relative_to(root)}: {match.group(0)}")
        for match in pages.finditer(text):
            if match.groups() != (owner.lower(), name):
                wrong.append(f"{path.relative_to(root)}: {match.group(0)}")
    return wrong


def rewrite(url: str, root: Path = ROOT) -> list[Path]:
    """Replace the configured address by `url` in `_config.yml` and its dependants; returns the files that changed."""
    match = _ADDRESS.fullmatch(url.removesuffix(".git").rstrip("/"))
    if match is None:
        raise SystemExit(f"{url!r} does not look like https://github.com/OWNER/NAME")
    old_owner, old_name = configured(root)
    owner, name = match.groups()
    changed = []
    for path in [root / "_config.yml", *dependants(root)]:
        old = path.read_text("utf8")
        new = old.replace(f"{old_owner.lower()}.github.io/{old_name}", f"{owner.lower()}.github.io/{name}")
        new = new.replace(f"{old_owner}/{old_name}", f"{owner}/{name}")
        if new != old:
            path.write_text(new, "utf8")
            changed.append(path)
    return changed


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__)
        return 2
    if arguments[0] == "--check":
        wrong = disagreements()
        print("\n".join(wrong) or "every file agrees with _config.yml")
        return 1 if wrong else 0
    for path in rewrite(arguments[0]):
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
