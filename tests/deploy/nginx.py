"""nginx with deploy/nginx.conf, confined as docker-compose.yml has it."""

import re
import signal
import subprocess
import urllib.request
from pathlib import Path

from .compose import DEPLOY
from .container import PLACE, contained
from brokers import free_ports
from faults.machine import needs
from waiting import eventually

USER = 101
"""As in docker-compose.yml."""
_SERVER = re.compile(r"(?<=server )chatsvc-\d:\d+")


class Nginx:
    """nginx in front of some servers. The file differs from that in deploy/ in the addresses only:
    those of the servers, and its own ports."""

    def __init__(self, directory: Path, servers: list[str]) -> None:
        port, status = free_ports(2)
        self.address = f"localhost:{port}"
        self._status = f"http://127.0.0.1:{status}"
        conf = directory / "nginx.conf"
        conf.write_text(_with_addresses(servers, port, status))
        self._log = directory / "log"
        self._log.touch(0o666)
        self._log.chmod(0o666)  # as docker's own pipe
        command = [needs("nginx", "nginx"), "-c", f"{PLACE}/nginx.conf", "-e", "/dev/stderr"]
        command += ["-g", "daemon off;"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                contained(USER, {"nginx.conf": conf}, command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if not eventually(lambda: self._ended or self.says("healthz") == "ok\n", 30):
            raise AssertionError(f"nginx is not up: {self.log}")
        assert not self._ended, f"nginx has ended: {self.log}"

    @property
    def _ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def says(self, page: str) -> str:
        """A page of its own, empty while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self._status}/{page}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def workers(self) -> set[int]:
        """The processes that serve, those that end too."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return set(map(int, children.read_text().split()))

    def reload(self) -> None:
        """`nginx -s reload`: that is this signal."""
        self._process.send_signal(signal.SIGHUP)

    def close(self) -> None:
        """Ends nginx and its workers."""
        if not self._ended:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


def _with_addresses(servers: list[str], port: int, status: int) -> str:
    text = (DEPLOY / "nginx.conf").read_text()
    written = _SERVER.findall(text)
    assert len(written) == len(servers)
    for name, address in zip(written, servers, strict=True):
        text = text.replace(name, address.replace("localhost", "127.0.0.1"))
    text, listens = re.subn(r"listen 8085 ", f"listen 127.0.0.1:{port} ", text)
    text, statuses = re.subn(r"listen 127\.0\.0\.1:8086;", f"listen 127.0.0.1:{status};", text)
    assert (listens, statuses) == (1, 1)
    return text
