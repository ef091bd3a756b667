"""Generates chatsvc/pb from protos/chat.proto, or tells whether what is there is up to date.

    python protos/generate.py [--write]

The mapped include path makes the generated imports absolute, so nothing is patched.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[1]
PACKAGE = "chatsvc/pb"


def generate(out: Path) -> Path:
    """Generates into `out` and returns the directory with the files."""
    arguments = [
        "protoc",
        f"-I{PACKAGE}={ROOT / 'protos'}",
        f"-I{Path(protoc.__file__).parent / '_proto'}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        str(ROOT / "protos" / "chat.proto"),
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed")
    return out / PACKAGE


def main() -> None:
    """Compares, and copies if asked to."""
    with tempfile.TemporaryDirectory() as directory:
        for fresh in sorted(generate(Path(directory)).iterdir()):
            committed = ROOT / PACKAGE / fresh.name
            if committed.exists() and committed.read_bytes() == fresh.read_bytes():
                continue
            if sys.argv[1:] != ["--write"]:
                sys.exit(f"{PACKAGE}/{fresh.name} is out of date: run tox -e protos -- --write")
            shutil.copyfile(fresh, committed)


if __name__ == "__main__":
    main()
