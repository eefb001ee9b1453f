"""The command that looks at everything a run depends on."""

import sys
from typing import Annotated

import typer

from diffmm_dist.cli_options import ConfigFile, Overrides, configured, place
from diffmm_dist.errors import UserError
from diffmm_dist.monitoring.log import say
from diffmm_dist.runs.config import Config


def doctor(
    overrides: Overrides = None,
    config: ConfigFile = None,
    storage: Annotated[
        list[str] | None,
        typer.Option(help="A folder or an address to list, write and read; repeatable.", callback=place),
    ] = None,
    address: Annotated[str | None, typer.Option(help="HOST:PORT of a Ray cluster, instead of RAY_ADDRESS.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Look at the packages, the machine, the cluster and places, and what a configuration needs of them."""
    from diffmm_dist.doctor import finding
    from diffmm_dist.doctor.report import examine

    settings = _settings(config, overrides)
    findings = examine(settings, storage=storage or [], address=address)
    say(finding.as_json(findings) if as_json else finding.as_lines(findings))
    sys.exit(finding.status_of(findings))


def _settings(config: str | None, overrides: list[str] | None) -> Config | UserError | None:
    """Return the configuration, None where none is named, or what is wrong with it, which is told with the rest."""
    if config is None and not overrides:
        return None
    try:
        return configured(config, overrides)
    except UserError as error:
        return error
