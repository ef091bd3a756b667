"""`chatsvc serve`: a server in the foreground."""

import os
import threading
import tomllib
from pathlib import Path
from typing import Any

import click

from chatsvc.config import Config, new_server_id
from chatsvc.errors import ChatError
from chatsvc.listening import Listening
from chatsvc.logs import LEVELS, configure
from chatsvc.process import limit_stacks, pin_cpu, raise_file_limit, watch_signals
from chatsvc.workers import Supervisor

from .options import Brokers, Workers, connections_topic_option, topic_option

_PRECEDENCE = """Each option is taken from the first of: the command line; its own environment
variable (SERVER_PORT, KAFKA_BROKERS, KAFKA_TOPIC); CHATSVC_SERVE_<OPTION>; the section [serve] of
the --config file; the default."""


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
    "--workers",
    type=Workers(),
    default=Config.workers,
    show_default=True,
    help="Processes that share the port, or auto: as many as there are cores.",
)
@click.option(
    "--pin-cpu/--no-pin-cpu",
    default=Config.pin_cpu,
    show_default=True,
    help="Keep each process on one CPU, which is about twice as fast.",
)
@click.option(
    "--max-stream-age",
    type=float,
    default=Config.max_stream_age,
    show_default=True,
    metavar="SECONDS",
    help="After about so long subscribers are asked to connect again, to even out load; 0: never.",
)
@click.option(
    "--reflection",
    is_flag=True,
    default=Config.reflection,
    help="Let tools such as grpcurl ask for the services and their messages.",
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
    limit_stacks()
    if chosen.workers > 1:
        _run_workers(chosen, log_format, log_level)
    else:
        _run_server(chosen)
    click.echo("Stopped")


def _run_server(config: Config) -> None:
    # Not at the top: the supervisor of workers must not have gRPC or Kafka's client.
    from chatsvc.server import Server

    warning = raise_file_limit(config.max_connections)
    if warning is not None:
        _warn(warning)
    if config.pin_cpu:
        pin_cpu(config.port or os.getpid())
    stopping = threading.Event()
    failures: list[ChatError] = []

    def fail(error: ChatError) -> None:
        failures.append(error)
        stopping.set()

    server = Server(config, on_failure=fail)
    watch_signals(stopping.set, _exit)
    try:
        _report(config, server.start())
        stopping.wait()
    finally:
        server.stop()
    for error in failures:
        raise error


def _run_workers(config: Config, log_format: str, log_level: str) -> None:
    supervisor = Supervisor(config, log_format, log_level)

    def kill(number: int) -> None:
        supervisor.kill()
        _exit(number)

    watch_signals(supervisor.ask_to_stop, kill)
    try:
        listening = supervisor.start()
        if listening is not None:
            _report(config, listening)
        supervisor.wait()
    finally:
        supervisor.stop()


def _exit(number: int) -> None:
    """Ends the process at once, as the signal would."""
    os._exit(128 + number)


def _report(config: Config, listening: Listening) -> None:
    """Says that the server is ready, in the seed's words."""
    for warning in listening.warnings:
        _warn(warning)
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


def _warn(warning: str) -> None:
    click.echo(f"Warning: {warning}", err=True)
