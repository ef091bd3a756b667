"""`chatsvc serve`: a server in the foreground."""

import os
import resource
import signal
import threading
import tomllib
from pathlib import Path
from typing import Any

import click

from chatsvc.config import Config, new_server_id
from chatsvc.server import Listening, Server

from .logs import LEVELS, configure
from .options import Brokers, connections_topic_option, topic_option

_PRECEDENCE = """Each option is taken from the first of: the command line; its own environment
variable (SERVER_PORT, KAFKA_BROKERS, KAFKA_TOPIC); CHATSVC_SERVE_<OPTION>; the section [serve] of
the --config file; the default."""

THREAD_STACK_BYTES = 256 * 1024
"""Address space for the stack of each Python thread; the default is 8 MiB."""


def _load_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Makes the file's [serve] section the defaults of the options, which is click's own way."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            section = tomllib.load(file).get("serve", {})
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} is not TOML: {error}") from error
    ctx.default_map = _options(ctx, path, section)
    return path


def _options(ctx: click.Context, path: Path, section: Any) -> dict[str, Any]:
    if not isinstance(section, dict):
        raise click.BadParameter(f"{path}: serve is not a section")
    known = {param.name for param in ctx.command.params} - {"config"}
    options = {}
    for key, value in section.items():
        name = key.replace("-", "_")
        if name not in known:
            raise click.BadParameter(f"{path}: [serve] has no option {key!r}")
        if name == "brokers" and isinstance(value, list):
            value = ",".join(map(str, value))
        options[name] = value
    return options


@click.command(epilog=_PRECEDENCE)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    callback=_load_config,
    show_envvar=True,
    help="A TOML file with these options in its section [serve].",
)
@click.option("--host", default=Config.host, show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=Config.port,
    show_default=True,
    envvar="SERVER_PORT",
    show_envvar=True,
    help="Port for gRPC; 0 takes a free one.",
)
@click.option(
    "--brokers",
    type=Brokers(),
    default="",
    envvar="KAFKA_BROKERS",
    show_envvar=True,
    help="Kafka brokers; without any, a broker in memory.",
)
@topic_option
@connections_topic_option
@click.option(
    "--metrics-host",
    default=Config.metrics_host,
    show_default=True,
    help="Address of the metrics port.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65_535),
    default=Config.metrics_port,
    show_default=True,
    help="Port for Prometheus; 0 takes a free one.",
)
@click.option(
    "--server-id", default=None, help="Unique name. [default: grpc-server-<unix time>-<4 hex>]"
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 100_000),
    default=Config.max_connections,
    show_default=True,
    help="Streams at once; more are refused.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the log lines on stderr.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS, case_sensitive=False),
    default="info",
    show_default=True,
    help="Least level to log.",
)
def serve(
    config: Path | None, log_format: str, log_level: str, server_id: str | None, **settings: Any
) -> None:
    """Run a chat server until SIGINT or SIGTERM."""
    configure(log_format, log_level)
    chosen = Config(server_id=server_id or new_server_id(), **settings)
    _raise_file_limit(chosen.max_connections)
    threading.stack_size(THREAD_STACK_BYTES)
    server = Server(chosen)
    stopping = _stop_signals()
    try:
        _report(chosen, server.start())
        stopping.wait()
    finally:
        server.stop()
    click.echo("Stopped")


def _report(config: Config, listening: Listening) -> None:
    """Says that the server is ready, in the seed's words."""
    for warning in listening.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if listening.embedded:
        click.echo("Embedded broker: messages are kept in memory and are gone at exit")
    lines = (
        f"gRPC Server ({config.server_id}) started at port :{listening.port}",
        f"Kafka Brokers: [{' '.join(listening.brokers)}]",
        f"Kafka Topic: {config.topic}",
        "Message Processor: Started (embedded)",
        f"Metrics: {listening.metrics_url}",
    )
    for line in lines:
        click.echo(line)


def _stop_signals() -> threading.Event:
    """An event that the first SIGINT or SIGTERM sets; the second ends the process at once.

    The signals are blocked, in all threads that start from here on, and waited for by a thread:
    a handler could interrupt the very lock that it needs, and would not run while the main thread
    is in a long call.
    """
    numbers = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    stopping = threading.Event()

    def wait() -> None:
        signal.sigwait(numbers)
        stopping.set()
        os._exit(128 + signal.sigwait(numbers))

    # It has no other end than the process's, so it must not keep that alive.
    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stopping


def _raise_file_limit(connections: int) -> None:
    """Takes as many file descriptors as the system lets this process have; each client is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + 256
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < needed:
        click.echo(
            f"Warning: only {soft} files may be open, too few for --max-connections {connections}; "
            "raise the limit (ulimit -n)",
            err=True,
        )
