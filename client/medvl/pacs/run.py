"""Carry out ``medvl pacs``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import warnings

from medvl.client.endpoint import find_endpoint
from medvl.contracts.defects import log_without_words
from medvl.pacs.config import Destination, GatewayConfig
from medvl.pacs.gateway import Gateway

_LOG = logging.getLogger("medvl.pacs")


def run(arguments: argparse.Namespace) -> int:
    """Run the gateway until SIGINT or SIGTERM; return 0."""
    config = GatewayConfig(
        ae_title=arguments.aet,
        host=arguments.host,
        port=arguments.port,
        endpoint=find_endpoint(arguments.endpoint),
        destination=Destination.parse(arguments.destination),
        labels=tuple(label.strip() for label in arguments.labels.split(",") if label.strip()),
        geometry_policy=arguments.geometry_policy,
        spool=arguments.spool,
        quiet_s=arguments.quiet_s,
        keep_s=arguments.keep_h * 3600.0,
        keep_refused_s=arguments.keep_refused_h * 3600.0,
    )
    configure_log()
    asyncio.run(_serve(config))
    return 0


def configure_log() -> None:
    """Log our own lines, what nothing catches and warnings of libraries, save those that remark on every instance."""
    warnings.simplefilter("ignore")
    log_without_words()
    for library in ("pydicom", "pynetdicom", "highdicom"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    _LOG.setLevel(logging.INFO)


async def _serve(config: GatewayConfig) -> None:
    gateway = Gateway(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, gateway.stop)
    _LOG.info("listening on port %d", gateway.port)
    await gateway.run()
