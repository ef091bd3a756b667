"""The tree as git has it, and as it will: what is tracked, or new and not ignored."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy(target: Path, *under: str) -> None:
    """Copies it, or what of it is under some folders; so a build leaves nothing in the tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *under],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # a file may be deleted and not committed yet
            copied = target / name
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes((ROOT / name).read_bytes())
