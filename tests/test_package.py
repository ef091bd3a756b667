"""What is in the wheel and in the source distribution."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the source distribution of this tree."""
    directory = tmp_path_factory.mktemp("dist")
    tree = directory / "tree"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file():  # a file may be deleted and not committed yet
            target = tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(directory), str(tree)],
        check=True,
        capture_output=True,
    )
    return directory


def test_the_wheel_holds_chatsvc_only(built: Path) -> None:
    """One top-level package, with the command line, the generated code and the type marker."""
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"chatsvc"}
    wanted = {"py.typed", "pb/chat_pb2.py", "pb/chat_pb2.pyi", "pb/chat_pb2_grpc.py", "server.py"}
    wanted |= {f"cli/{path.name}" for path in (ROOT / "cli").glob("*.py")}
    for package in ("bench", "doctor", "verify"):
        wanted |= {f"{package}/{path.name}" for path in (ROOT / "chatsvc" / package).glob("*.py")}
    assert {f"chatsvc/{name}" for name in wanted} <= set(names)


def test_the_source_distribution_can_be_built_from(built: Path) -> None:
    """It has the package, the command line and the proto."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"setup.cfg", "pyproject.toml", "README.md", "protos/chat.proto"} <= names
    assert {"chatsvc/server.py", "cli/main.py"} <= names
