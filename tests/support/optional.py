"""What some machines lack: DGL has no package for CPython 3.13 and later, and METIS then comes from pymetis."""

import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.graph import metis
from diffmm_dist.graph.dgl_package import import_dgl


def has_dgl():
    """Whether DGL can be imported."""
    try:
        import_dgl()
    except UserError:
        return False
    return True


def dgl_or_skip():
    """Import DGL as the program does, or skip the test."""
    try:
        return import_dgl()
    except UserError as error:
        pytest.skip(str(error))


def metis_or_skip():
    """Skip the test where nothing brings METIS."""
    try:
        metis.library()
    except UserError as error:
        pytest.skip(str(error))
