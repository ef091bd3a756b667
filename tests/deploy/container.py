"""Programs as docker-compose.yml confines them, without docker: as somebody else than root, without
capabilities, on a file system that is read-only but for /tmp."""

import shlex
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from faults.machine import needs, needs_root

PLACE = "/mnt"
"""Where the files of a container are; nothing else of this machine's is there."""


def contained(user: int, files: Mapping[str, Path], command: list[str]) -> list[str]:
    """A command that runs `command` so, with `files` at these names in PLACE. The network is that
    of this machine."""
    needs_root()
    unshare, setpriv = needs("unshare", "util-linux"), needs("setpriv", "util-linux")
    mounts = [f"mount -t tmpfs -o mode=755 tmpfs {PLACE}"]
    for name, path in files.items():
        target, source = shlex.quote(f"{PLACE}/{name}"), shlex.quote(str(path))
        make = "mkdir" if path.is_dir() else "touch"
        mounts += [f"{make} {target}", f"mount --bind {source} {target}"]
    mounts += [
        f"mount -o remount,bind,ro {PLACE}",
        "mount -t tmpfs -o mode=1777 tmpfs /tmp",
        "mount -o remount,bind,ro /",
    ]
    right = (
        *(f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"),
        *("--bounding-set=-all", "--inh-caps=-all"),
    )
    script = f'set -e; {"; ".join(mounts)}; cd /tmp; exec {setpriv} {" ".join(right)} "$@"'
    return [unshare, "--mount", "sh", "-c", script, "sh", *command]


def contained_chatsvc(app: Path, user: int, *arguments: str) -> list[str]:
    """`chatsvc` of an unpacked wheel, run so with the packages of this environment."""
    files = {
        "python": Path(sys.base_prefix),
        "packages": Path(sysconfig.get_path("purelib")),
        "app": app,
    }
    python = f"python{sysconfig.get_python_version()}"
    command = [
        *("env", f"PYTHONPATH={PLACE}/app:{PLACE}/packages", "PYTHONDONTWRITEBYTECODE=1"),
        # A Python that was built for another place looks for its library there.
        f"LD_LIBRARY_PATH={PLACE}/python/lib",
        *(f"{PLACE}/python/bin/{python}", "-m", "chatsvc.cli", *arguments),
    ]
    return contained(user, files, command)
