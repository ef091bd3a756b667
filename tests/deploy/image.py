"""deploy/Dockerfile, carried out without docker as far as that goes."""

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from .compose import DEPLOY, ROOT

Instruction = tuple[str, str]


def stages() -> list[list[Instruction]]:
    """The instructions of each stage, each a word and the rest of its line."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found: list[list[Instruction]] = []
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append((word, " ".join(rest.split())))
    return found


def the(word: str) -> str:
    """What the last stage says with an instruction that it has once."""
    (rest,) = [rest for each, rest in stages()[-1] if each == word]
    return rest


def context(directory: Path) -> None:
    """Copies what COPY of the first stage takes of the tree, without what .dockerignore leaves
    out."""
    for word, rest in stages()[0]:
        if word == "COPY":
            *sources, target = shlex.split(rest)
            for source in sources:
                assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines()
                _copy(ROOT / source, directory / target)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def wheel(directory: Path) -> Path:
    """The installed files of the image: those of the wheel that RUN of the first stage makes."""
    tree, app = directory / "tree", directory / "app"
    tree.mkdir()
    context(tree)
    (run,) = [rest for word, rest in stages()[0] if word == "RUN"]
    assert re.fullmatch(r"pip wheel .* --wheel-dir /wheels \.", run)
    # Its dependencies are in this environment already.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(directory), "."], cwd=tree, check=True)
    (made,) = directory.glob("chatsvc-*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(app)
    return app
