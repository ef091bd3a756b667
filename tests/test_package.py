"""What is in the wheel and in the source distribution."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import checkout
import pytest

from chatsvc import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the source distribution of this tree."""
    directory = tmp_path_factory.mktemp("dist")
    tree = directory / "tree"
    checkout.copy(tree)
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
    assert not [name for name in names if "test" in name.split("/")[-1]]
    assert f"chatsvc-{__version__}-" in wheel.name


def test_an_index_would_take_both(built: Path) -> None:
    """Their metadata is whole, and README can be shown."""
    files = [str(each) for each in built.iterdir() if each.is_file()]
    assert len(files) == 2
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)


def test_the_wheel_asks_for_what_is_tested(built: Path) -> None:
    """Each requirement has the lower bound that tests/lowest.txt installs, and the program is
    there."""
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)

    def told(name: str) -> str:
        (path,) = (each for each in archive.namelist() if each.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()

    required = re.findall(r"^Requires-Dist: ([\w-]+)[^>]*>=([\d.]+)", told("METADATA"), re.M)
    lowest = (ROOT / "tests" / "lowest.txt").read_text().split()
    assert {f"{name}=={version}" for name, version in required} == set(lowest)
    assert "chatsvc = chatsvc.cli.__main__:run" in told("entry_points.txt")


def test_the_source_distribution_can_be_built_from(built: Path) -> None:
    """It has the package, the command line, the proto, and what README links to."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"setup.cfg", "pyproject.toml", "README.md", "protos/chat.proto"} <= names
    assert {"chatsvc/server.py", "cli/main.py"} <= names
    assert {"CHANGELOG.md", "ARCHITECTURE.md", "docs/latency.svg"} <= names
    linked = re.findall(r"\]\(([\w/.-]+\.md)\b", (ROOT / "README.md").read_text())
    assert {"docs/concepts.md", "docs/operations.md"} <= set(linked) <= names
    examples = {name for name in names if name.startswith("examples/")}
    assert {name for name in examples if (ROOT / name).is_file()} == {*checkout.files("examples")}
    assert not [name for name in names if name.startswith((".", "deploy/", "dist/"))]
