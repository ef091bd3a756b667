"""What tests do to the machine itself, as root, and undo."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def needs_root() -> None:
    """Fails a test that somebody else than root has started."""
    if os.geteuid() != 0:
        pytest.fail(
            "needs root, to mount or for network namespaces (or leave it out: -m 'not root')"
        )


def needs(program: str, package: str) -> str:
    """The path of a program; fails the test where it is not installed."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.fail(f"{program} is missing: apt-get install {package}")
    return found


def run(*command: str) -> None:
    """Runs a command, whose errors fail the test."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, f"{' '.join(command)}: {answer.stderr.strip()}"


@contextmanager
def small_disk(directory: Path, *, mebibytes: int) -> Iterator[None]:
    """Makes a directory a file system of its own, in memory."""
    needs_root()
    directory.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(directory))
    try:
        yield
    finally:
        run("umount", str(directory))


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Takes all room that a file system has."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        room = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
    try:
        yield
    finally:
        ballast.unlink()


def faketime(clock: Path) -> dict[str, str]:
    """The environment of a process whose clock is off by what a file says, such as +2h. It looks
    into the file once a second; the monotonic clock stays as it is."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.fail("libfaketime is missing: apt-get install libfaketime")
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
