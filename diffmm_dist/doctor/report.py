"""All checks, in the order in which they are shown."""

from collections.abc import Sequence
from functools import partial

from diffmm_dist.doctor import configured, machine, packages, pairs, places
from diffmm_dist.doctor.declared import Declared, declared
from diffmm_dist.doctor.finding import Check, Finding, found_by
from diffmm_dist.errors import UserError, one_line
from diffmm_dist.launch.ray_package import is_local
from diffmm_dist.runs.config import Config


def examine(config: Config | UserError | None, *, storage: Sequence[str], address: str | None) -> list[Finding]:
    """Look at everything, whatever is wrong with some of it.

    Args:
        config: a run's, or what is wrong with it.
        storage: settled places to try.
        address: of a cluster of Ray's; None takes RAY_ADDRESS.
    """
    run = config if isinstance(config, Config) else None
    needs, findings = _declared()
    checks = packages.checks(needs, dgl_needed=run is not None and run.graph.kernel == "dgl")
    checks |= {"pair": pairs.known, "cores": machine.cores, "memory": machine.memory, "gpu": machine.gpus}
    checks |= {"cluster": partial(machine.cluster, address)}
    findings += _all(checks)
    for place in storage:
        findings += found_by("storage", partial(places.probe, "storage", place))
    if isinstance(config, UserError):
        findings.append(Finding("config", "FAIL", one_line(config)))
    if run is not None:
        on_cluster = run.cluster.num_workers != 0 and (address is not None or not is_local())
        findings += _all(configured.checks(run, on_cluster=on_cluster))
    return findings


def _all(checks: dict[str, Check]) -> list[Finding]:
    return [finding for name, check in checks.items() for finding in found_by(name, check)]


def _declared() -> tuple[Declared, list[Finding]]:
    """Return what is declared, and why that cannot be read: `packaging`, which reads it, may be missing too."""
    try:
        return declared(), []
    except Exception as error:
        return Declared(unknown="what is declared cannot be read"), list(found_by("packaging", partial(_raise, error)))


def _raise(error: Exception) -> Sequence[Finding]:
    raise error
