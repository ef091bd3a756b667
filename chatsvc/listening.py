"""Listening: what is known of a server once clients can connect."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Listening:
    """Where a started server is, and what its operator should know."""

    port: int
    metrics_url: str
    brokers: tuple[str, ...]
    embedded: bool
    warnings: tuple[str, ...]
