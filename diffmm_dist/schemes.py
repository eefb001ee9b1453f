"""The kinds of addresses there are: one row for each, which says all that differs between them but how they are opened.

How they are opened stands in ``stores``. A new store is a row here; it needs a class of its own there only where its
client does not behave as fsspec says.
"""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scheme:
    """One kind of address, ``NAME://ROOT/PATH``.

    Attributes:
        name: how settled addresses of it begin.
        root: what the first part of an address is, for messages.
        example: an address, for messages.
        package: the module that fsspec needs for it.
        extra: the project's extra that brings the package; None where it always is there.
        aliases: other names, which are written as ``name``.
        depth: how many parts the root has.
        pattern: what the root looks like.
        writable: whether anything can be made there.
        shared: whether other processes, on any machine, see what is there.
        clients: packages whose exceptions mean that the store has refused or could not be reached.
        access: what to do where the store does not let one in.
        missing: what is said of what cannot be found; some stores hide what one may not see.
    """

    name: str
    root: str
    example: str
    package: str
    extra: str | None = None
    aliases: tuple[str, ...] = ()
    depth: int = 1
    pattern: re.Pattern[str] = field(default=re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*"), repr=False)
    writable: bool = True
    shared: bool = True
    clients: tuple[str, ...] = ()
    access: str = ""
    missing: str = "it does not exist"


_HOST = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_DATASET = re.compile(r"datasets/[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9%][A-Za-z0-9%._-]*)?")
_HTTP_CLIENTS = ("aiohttp", "fsspec", "asyncio")

S3 = Scheme("s3", "bucket", "s3://BUCKET/PREFIX", "s3fs", clients=("aiobotocore", "botocore"))
_OTHERS = (
    Scheme(
        "gs", "bucket", "gs://BUCKET/PREFIX", "gcsfs", extra="gcs", aliases=("gcs",),
        clients=("gcsfs", "google", "requests", *_HTTP_CLIENTS),
        access="set GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon for a public bucket",
    ),
    Scheme(
        "az", "container", "az://CONTAINER/PREFIX", "adlfs", extra="azure", aliases=("abfs", "abfss"),
        clients=("adlfs", "azure", *_HTTP_CLIENTS),
        access="set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or what else proves who you are",
    ),
    Scheme(
        "hf", "data set", "hf://datasets/OWNER/NAME/PATH", "huggingface_hub", extra="hf", depth=3, pattern=_DATASET,
        writable=False, clients=("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"),
        missing="it does not exist, or HF_TOKEN is not set to the token of a user who may read it",
        access="set HF_TOKEN to the token of a user who may read it",
    ),
    Scheme("http", "host", "http://HOST/PATH", "aiohttp", extra="http", pattern=_HOST, writable=False,
           clients=_HTTP_CLIENTS),
    Scheme("https", "host", "https://HOST/PATH", "aiohttp", extra="http", pattern=_HOST, writable=False,
           clients=_HTTP_CLIENTS),
    Scheme("memory", "name", "memory://NAME/PATH", "fsspec", shared=False, clients=("fsspec",)),
)  # fmt: skip
SCHEMES = {scheme.name: scheme for scheme in (S3, *_OTHERS)}
_BY_ALIAS = SCHEMES | {alias: scheme for scheme in SCHEMES.values() for alias in scheme.aliases}
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.DOTALL)


def named(name: str) -> Scheme | None:
    """Return the scheme of a name or alias, in letters of any size; None for any other."""
    return _BY_ALIAS.get(name.lower())


def scheme_of(place: str) -> Scheme | None:
    """Return the scheme of an address; None for a path, and for what is none of the schemes."""
    match = _ADDRESS.match(place)
    return None if match is None else named(match.group(1))


def listed(*, writable: bool = False) -> str:
    """Return the shared schemes, or those of them that can be written, for messages."""
    names = [f"{scheme.name}://" for scheme in SCHEMES.values() if scheme.shared and (scheme.writable or not writable)]
    return f"{', '.join(names[:-1])} or {names[-1]}"
