"""The command that writes a page about runs."""

from typing import Annotated

import typer

from diffmm_dist.cli_options import file_to_write, place
from diffmm_dist.monitoring.log import say


def report(
    runs: Annotated[list[str], typer.Argument(help="Folders of finished runs of one dataset.", callback=place)],
    out: Annotated[str, typer.Option(help="HTML file to write, or its address.", callback=file_to_write)],
    k: Annotated[int, typer.Option(min=1, help="Cut-off of what is shown in detail.")] = 20,
    user: Annotated[
        str | None, typer.Option(help="Original id of the user whose neighbourhood is drawn; a typical one without.")
    ] = None,
) -> None:
    """Write a page about a run, or about several side by side: one HTML file that needs nothing else."""
    from diffmm_dist.report.write import write_report
    from diffmm_dist.training.worker import prepare_process

    prepare_process(0)
    count = write_report(runs, out, k=k, user=user)
    say(f"{out}: {count} run{'s' if count > 1 else ''}")
