"""Python and the packages: each imports, and has a version that has been tried."""

import platform
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

from diffmm_dist.doctor.declared import Declared, lacking
from diffmm_dist.doctor.finding import Check, Finding, first_line
from diffmm_dist.errors import UserError, one_line

_CSR = "the kernel csr trains without it"
_IMPORTED = ("torch", "dgl", "numpy", "pyarrow")  # whose own lines say what is wrong with them


def checks(needs: Declared, *, dgl_needed: bool) -> dict[str, Check]:
    """Return what there is to look at, by its name.

    Args:
        needs: what is declared.
        dgl_needed: the configuration asks for DGL's kernel, without which others train.
    """
    return {
        "python": partial(_python, needs),
        "torch": partial(_package, needs, "torch", _torch),
        "dgl": partial(_dgl, needs, dgl_needed),
        "metis": _metis,
        "ray": partial(_package, needs, "ray", _ray),
        "numpy": partial(_package, needs, "numpy", _plain("numpy")),
        "pyarrow": partial(_package, needs, "pyarrow", _plain("pyarrow")),
        "others": partial(_others, needs),
        "extras": partial(_extras, needs),
    }


def _python(needs: Declared) -> Iterator[Finding]:
    version = platform.python_version()
    if needs.python:
        from packaging.specifiers import SpecifierSet

        if not SpecifierSet(needs.python).contains(version, prereleases=True):
            yield Finding("python", "FAIL", f"{version} is not {needs.python}; make an environment with one of these")
            return
    yield Finding("python", "ok", f"{version} on {platform.system()} {platform.machine()}")


def _package(needs: Declared, name: str, look: Callable[[], tuple[str, str]]) -> Iterator[Finding]:
    version, more = look()
    refusal = needs.refusal(name, version)
    if refusal:
        yield Finding(name, "FAIL", refusal)
    else:
        yield Finding(name, "ok", f"{version}{more}")


def _plain(name: str) -> Callable[[], tuple[str, str]]:
    return lambda: (str(import_module(name).__version__), "")


def _torch() -> tuple[str, str]:
    torch: Any = import_module("torch")
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU"
    if torch.version.cuda is None and getattr(torch.version, "hip", None):
        build = f"built for ROCm {torch.version.hip}"
    threads = torch.get_num_threads()
    return str(torch.__version__), f", {build}, {threads} thread{'' if threads == 1 else 's'}"


def _ray() -> tuple[str, str]:
    from diffmm_dist.launch.ray_package import ray_version

    return ray_version(), ""


def _dgl(needs: Declared, needed: bool) -> Iterator[Finding]:
    """Yield how it is with DGL, which is of use and not needed unless it is asked for."""
    mark: Any = "FAIL" if needed else "note"
    try:
        from diffmm_dist.graph.dgl_package import import_dgl

        version = str(import_dgl().__version__)
    except UserError as error:
        yield Finding("dgl", mark, one_line(error) if needed else f"not in use, {_CSR}: {one_line(error)}")
        return
    refusal = needs.refusal("dgl", version)
    yield Finding("dgl", mark, refusal) if refusal else Finding("dgl", "ok", f"{version}, graph.kernel=dgl can be used")


def _metis() -> Iterator[Finding]:
    try:
        from diffmm_dist.graph.metis import library

        yield Finding("metis", "ok", library())
    except UserError as error:
        yield Finding("metis", "note", one_line(error))
    except Exception as error:  # it needs torch, whose own line says what is wrong
        yield Finding("metis", "note", f"not known: {first_line(error)}")


def _others(needs: Declared) -> Iterator[Finding]:
    """Yield how it is with all that is needed and has no line of its own; their versions say enough."""
    if needs.unknown:
        yield Finding("others", "note", needs.unknown)
        return
    wrong = [text for name, one in needs.packages.items() if name not in _IMPORTED for text in lacking(one)]
    if wrong:
        yield Finding("others", "FAIL", f"{', '.join(wrong)}; install the program again")
        return
    yield Finding(
        "others", "ok", f"all {len(needs.packages)} packages that it needs are here, in versions that it is for"
    )


def _extras(needs: Declared) -> Iterator[Finding]:
    if needs.unknown:
        return
    present = [name for name, packages in needs.extras.items() if not any(map(lacking, packages))]
    absent = [name for name in needs.extras if name not in present]
    yield Finding("extras", "ok", f"present: {', '.join(present) or 'none'}; absent: {', '.join(absent) or 'none'}")
