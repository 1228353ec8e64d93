"""The gateway's loop: series that have become quiet are answered and delivered, one at a time."""

from __future__ import annotations

import asyncio
import logging
import time

from medvl.client.aio import AsyncClient
from medvl.contracts.defects import cause_of
from medvl.contracts.errors import GeometryRefused, SeriesError
from medvl.pacs.analysis import analyse
from medvl.pacs.config import GatewayConfig
from medvl.pacs.dimse import StorageScp, deliver
from medvl.pacs.spool import Phase, Spool, SpooledSeries, fingerprint_of

_LOG = logging.getLogger(__name__)

_REST_S = 60.0
"""How long a series is left alone when the spool would not say or keep what became of it."""
_TELL_S = 3600.0
"""Between two lines about the spool."""


class Gateway:
    """One gateway; make it inside a running event loop.

    Parameters
    ----------
    config
        What it is told.

    Raises
    ------
    SetupError
        When its port or its spool cannot be had.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._spool = Spool(config.spool)
        self._stop = asyncio.Event()
        self._resting_until_s: dict[str, float] = {}
        self._tell_at_s = 0.0
        try:
            self._scp = StorageScp(config.ae_title, config.host, config.port, self._spool)
        except BaseException:
            self._spool.close()
            raise

    @property
    def port(self) -> int:
        """The port that instances are taken on."""
        return self._scp.port

    async def run(self) -> None:
        """Work until :meth:`stop` is called; a series that is being worked on is finished first."""
        keep_s = {Phase.DELIVERED: self._config.keep_s, Phase.REFUSED: self._config.keep_refused_s}
        try:
            async with AsyncClient(self._config.endpoint) as client:
                while not self._stop.is_set():
                    self._spool.purge(keep_s)
                    self._tell_spool()
                    due_at_s, series = self._next()
                    if series is not None and due_at_s <= time.time():
                        await self._work(client, series)
                    else:
                        await self._wait(due_at_s)
        finally:
            await asyncio.to_thread(self._scp.stop)
            self._spool.close()

    def stop(self) -> None:
        """Ask :meth:`run` to end."""
        self._stop.set()

    def _tell_spool(self) -> None:
        """Say at the start and then once in a while whether the spool fills with what nobody will ask for."""
        if time.time() >= self._tell_at_s:
            self._tell_at_s = time.time() + _TELL_S
            _LOG.info("spool: %d refused series, %.1f GB free", self._spool.refused(), self._spool.free_bytes() / 1e9)

    def _next(self) -> tuple[float, SpooledSeries | None]:
        due: list[tuple[float, SpooledSeries]] = []
        for series in self._spool.series():
            at_s = self._due_at_s(series)
            if at_s is not None:
                due.append((at_s, series))
        return min(due, key=lambda d: d[0], default=(float("inf"), None))

    def _due_at_s(self, series: SpooledSeries) -> float | None:
        rested_s = self._resting_until_s.get(series.name, 0.0)
        if time.time() < rested_s:
            return rested_s
        try:
            return series.due_at_s(self._config.quiet_s)
        except OSError as error:
            return self._rest(series, error)

    def _rest(self, series: SpooledSeries, error: Exception) -> float:
        """Leave a series alone for a while, in memory alone: a full or failing disk keeps no state."""
        _LOG.error("series %s rests for %.0f s: %s", series.name, _REST_S, cause_of(error))
        until_s = self._resting_until_s[series.name] = time.time() + _REST_S
        return until_s

    async def _wait(self, due_at_s: float) -> None:
        try:
            # What arrives meanwhile is not due before another quiet_s has passed.
            async with asyncio.timeout(min(max(0.0, due_at_s - time.time()), self._config.quiet_s)):
                await self._stop.wait()
        except TimeoutError:
            pass

    async def _work(self, client: AsyncClient, series: SpooledSeries) -> None:
        """Work on one series; whatever becomes of it, the gateway goes on with the next."""
        try:
            await self._answer(client, series)
        except Exception as error:
            self._rest(series, error)

    async def _answer(self, client: AsyncClient, series: SpooledSeries) -> None:
        instances = series.files()
        fingerprint = fingerprint_of(instances)
        # One that ends the process, as a series that does not fit into memory does, then waits behind all others.
        begun = series.record(fingerprint, Phase.BEGUN)
        _LOG.info("series %s begun (attempt %d)", series.name, begun.attempts)
        try:
            files = series.results(fingerprint)
            if not files:
                made = await analyse(client, instances, fingerprint, self._config)
                files = series.keep_results(fingerprint, made)
            await asyncio.to_thread(deliver, files, self._config.ae_title, self._config.destination)
        except (SeriesError, GeometryRefused) as error:
            series.record(fingerprint, Phase.REFUSED)
            _LOG.warning("series %s refused: %s", series.name, error.reason)
        except Exception as error:
            series.record(fingerprint, Phase.FAILED)
            _LOG.warning("series %s failed (attempt %d): %s", series.name, begun.attempts, cause_of(error))
        else:
            series.record(fingerprint, Phase.DELIVERED)
            _LOG.info("series %s delivered: %d results", series.name, len(files))
