"""Gathering: the metrics of several processes on one page, and whether they are ready."""

import http.client
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from chatsvc.sideport import Readiness

T = TypeVar("T")
Urls = Mapping[str, str | None]

FETCH_SECONDS = 2.0
"""How long a scrape waits for the pages of all workers."""

# Not Prometheus' older text: that makes families of their own of the times of creation.
_OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


class Gathering(Collector):
    """Collects the families of all workers' pages, each sample with its worker as a label, beside
    this process's own as worker `supervisor`.

    `urls` gives each worker's name and its page, or None while it has none. A worker whose page
    does not come in time is left out, and is 0 in chatsvc_worker_up. Thread-safe: each scrape runs
    in a thread of the metrics port and waits for at most about `timeout` seconds.
    """

    def __init__(
        self,
        urls: Callable[[], Urls],
        timeout: float = FETCH_SECONDS,
    ) -> None:
        self._urls = urls
        self._timeout = timeout
        self._own = CollectorRegistry()
        ProcessCollector(registry=self._own)
        PlatformCollector(registry=self._own)

    def collect(self) -> Iterator[Metric]:
        """All families; blocks while the pages are fetched."""
        urls = self._urls()
        pages = _fetch(urls, self._timeout, _page)
        up = GaugeMetricFamily(
            "chatsvc_worker_up", "Whether a worker serves and answers", labels=["worker"]
        )
        for name in urls:
            up.add_metric([name], float(name in pages))
        yield up
        yield from _merged({"supervisor": list(self._own.collect()), **pages})

    def readiness(self) -> Readiness:
        """Ready while at least one worker is, and which ones are not. Blocks as a scrape does."""
        urls = self._urls()
        answers = _fetch(urls, self._timeout, _ready)
        silent = Readiness(False, "does not answer")
        found = {
            name: answers.get(name, silent if url else Readiness(False, "is starting"))
            for name, url in urls.items()
        }
        others = "; ".join(
            f"worker {name}: {each.text}" for name, each in found.items() if not each.ready
        )
        ready = any(each.ready for each in found.values())
        return Readiness(ready, "; ".join(filter(None, ("ok" if ready else "", others))))


def _fetch(urls: Urls, timeout: float, read: Callable[[str, float], T]) -> dict[str, T]:
    """What `read` makes of the pages, all at once; without those that fail or are late."""
    known = {name: url for name, url in urls.items() if url is not None}
    if not known:
        return {}
    # A pool for each time: one that all shared could be full of a slow one's fetches.
    pool = ThreadPoolExecutor(len(known), thread_name_prefix="gather")
    try:
        fetches = {name: pool.submit(read, url, timeout) for name, url in known.items()}
        done = wait(fetches.values(), timeout).done
        return {
            name: fetch.result()
            for name, fetch in fetches.items()
            if fetch in done and fetch.exception() is None
        }
    finally:
        # What is late ends by its own timeout, and nobody waits for it.
        pool.shutdown(wait=False)


def _page(url: str, timeout: float) -> list[Metric]:
    """The families of a page."""
    _, text = _get(url, urlsplit(url).path, timeout)
    families: Iterable[Metric] = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return list(families)


def _ready(url: str, timeout: float) -> Readiness:
    """Whether the process of a page is ready."""
    status, text = _get(url, "/readyz", timeout)
    return Readiness(status == HTTPStatus.OK, text.strip())


def _get(url: str, path: str, timeout: float) -> tuple[int, str]:
    """The status and the text. Not by urllib, which would ask a proxy of the environment."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    try:
        connection.request("GET", path, headers=_OPEN_METRICS)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def _merged(pages: Mapping[str, Iterable[Metric]]) -> Iterable[Metric]:
    families: dict[str, Metric] = {}
    for worker, page in pages.items():
        for family in page:
            merged = families.setdefault(
                family.name,
                Metric(family.name, family.documentation, family.type, family.unit),
            )
            merged.samples += [
                sample._replace(labels={"worker": worker, **sample.labels})
                for sample in family.samples
            ]
    return families.values()
