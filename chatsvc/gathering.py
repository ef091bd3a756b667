"""Gathering: the metrics of several processes on one page."""

import http.client
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

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
        urls: Callable[[], Mapping[str, str | None]],
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
        pages = self._fetch({name: url for name, url in urls.items() if url is not None})
        up = GaugeMetricFamily(
            "chatsvc_worker_up", "Whether a worker serves and answers", labels=["worker"]
        )
        for name in urls:
            up.add_metric([name], float(name in pages))
        yield up
        yield from _merged({"supervisor": list(self._own.collect()), **pages})

    def _fetch(self, urls: Mapping[str, str]) -> dict[str, list[Metric]]:
        if not urls:
            return {}
        # A pool for each scrape: one that all shared could be full of a slow one's fetches.
        pool = ThreadPoolExecutor(len(urls), thread_name_prefix="gather")
        try:
            fetches = {name: pool.submit(_page, url, self._timeout) for name, url in urls.items()}
            done = wait(fetches.values(), self._timeout).done
            return {
                name: fetch.result()
                for name, fetch in fetches.items()
                if fetch in done and fetch.exception() is None
            }
        finally:
            # What is late ends by its own timeout, and nobody waits for it.
            pool.shutdown(wait=False)


def _page(url: str, timeout: float) -> list[Metric]:
    """The families of a page. Not by urllib, which would ask a proxy of the environment."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=timeout)
    try:
        connection.request("GET", address.path, headers=_OPEN_METRICS)
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    families: Iterable[Metric] = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return list(families)


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
