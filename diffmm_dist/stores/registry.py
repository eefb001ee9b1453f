"""Which class opens which address."""

from collections.abc import Callable
from functools import cache

from diffmm_dist.schemes import SCHEMES, Scheme, scheme_of
from diffmm_dist.stores.azure import AzureStore
from diffmm_dist.stores.gcs import GcsStore
from diffmm_dist.stores.http import HttpStore
from diffmm_dist.stores.memory import MemoryStore
from diffmm_dist.stores.s3 import S3Store
from diffmm_dist.stores.store import Store

# Those of all other schemes do as fsspec says.
_CLASSES: dict[str, Callable[[Scheme], Store]] = {
    "s3": S3Store,
    "gs": GcsStore,
    "az": AzureStore,
    "http": HttpStore,
    "https": HttpStore,
    "memory": MemoryStore,
}


def store_of(address: str) -> Store:
    """Return the store of a settled address."""
    scheme = scheme_of(address)
    assert scheme is not None
    return _store(scheme.name)


@cache
def _store(name: str) -> Store:
    return _CLASSES.get(name, Store)(SCHEMES[name])
