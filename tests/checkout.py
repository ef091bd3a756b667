"""The tree as git has it, and as it will: what is tracked, or new and not ignored."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def files(*under: str) -> list[str]:
    """The paths of its files, or of those under some folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *under],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    # One may be deleted and not committed yet.
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def copy(target: Path, *under: str) -> None:
    """Copies it, or what of it is under some folders; so a build leaves nothing in the tree."""
    for name in files(*under):
        copied = target / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes((ROOT / name).read_bytes())
