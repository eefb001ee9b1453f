"""The command that answers requests over HTTP."""

import sys
from typing import Annotated

import typer

from diffmm_dist.cli_options import place
from diffmm_dist.monitoring.log import logger, say


def serve(
    bundle: Annotated[str, typer.Argument(help="A bundle written by `export`.", callback=place)],
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine reach it only at another one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Processes that answer.")] = 1,
    reload_s: Annotated[
        float, typer.Option(min=0.1, max=1e6, help="Seconds between looks whether the bundle was exported anew.")
    ] = 10.0,
) -> None:
    """Answer requests for recommendations over HTTP until Ctrl-C; docs/serving.md says what can be asked."""
    from diffmm_dist.serve.server import is_loopback, serve_until_stopped

    def ready(address: str) -> None:
        say(f"{address}: serving {bundle}; Ctrl-C ends it")
        sys.stdout.flush()  # into a pipe too, where somebody may wait for it

    if not is_loopback(host):
        logger.warning("note: whoever reaches port %d of %s can ask, for nobody is asked who they are", port, host)
    serve_until_stopped(bundle, host=host, port=port, replicas=replicas, reload_s=reload_s, ready=ready)
    say("stopped")
