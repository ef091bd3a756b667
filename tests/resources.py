"""What a process of ours holds, as Linux tells it."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple


class Resources(NamedTuple):
    """Threads, open files, resident memory in MiB and processor time in seconds."""

    threads: int
    files: int
    rss_mib: float
    cpu_seconds: float

    def __str__(self) -> str:
        return f"{self.rss_mib:.0f} MiB, {self.threads} threads, {self.files} files"


def of(pid: int) -> Resources:
    """The resources of a process now."""
    process = Path("/proc", str(pid))
    status = dict(
        line.split(":\t", 1) for line in process.joinpath("status").read_text().splitlines()
    )
    times = process.joinpath("stat").read_text().rsplit(")", 1)[1].split()
    return Resources(
        threads=int(status["Threads"]),
        files=len(list(process.joinpath("fd").iterdir())),
        rss_mib=int(status["VmRSS"].split()[0]) / 1024,
        cpu_seconds=(int(times[11]) + int(times[12])) / 100,
    )


def cpus(pid: int) -> set[int]:
    """The CPUs that any thread of a process may run on."""
    return {
        cpu
        for task in Path("/proc", str(pid), "task").iterdir()
        for cpu in os.sched_getaffinity(int(task.name))
    }


def children(pid: int, module: str = "chatsvc.") -> list[int]:
    """The processes that one has started of a module and that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = path.joinpath("stat").read_text().rsplit(")", 1)[1].split()
            command = path.joinpath("cmdline").read_text()
            if int(fields[1]) == pid and fields[0] != "Z" and module in command:
                found.append(int(path.name))
    return found


def connections(address: str) -> int:
    """TCP connections that a server on this machine has at its port and has not closed."""
    port = f"{int(address.rpartition(':')[2]):04X}"
    open_states = {"01", "08"}  # established, and closed by the client alone
    rows = [
        line.split()
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
    ]
    return sum(row[1].endswith(f":{port}") and row[3] in open_states for row in rows)
