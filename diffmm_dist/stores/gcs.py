"""Google Cloud Storage."""

import json
import logging
import os
import uuid
from typing import Any
from urllib.parse import quote

from diffmm_dist.stores.store import Store

_BOUNDARY = uuid.uuid4().hex  # which is nowhere in what is written


class GcsStore(Store):
    """Google Cloud Storage, whose generations make conditional writes possible."""

    def file_system(self) -> Any:
        """Return the client, without its trial of zonal buckets, where files are seen before they are complete."""
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it writes the traceback of what it raises too
        return super().file_system()

    def put_if(self, path: str, data: bytes, *, version: str | None) -> str | None:
        """Write an object under a condition; see ``Store.put_if``."""
        files = self.file_system()
        bucket, _, key = path.partition("/")
        place = f"{files.base.removesuffix('storage/v1/')}upload/storage/v1/b/{quote(bucket)}/o"
        body = _multipart({"name": key}, data)
        options = {"headers": {"Content-Type": f"multipart/related; boundary={_BOUNDARY}"}, "json_out": True}
        try:
            answer = files.call(
                "POST", place, uploadType="multipart", ifGenerationMatch=version or "0", data=body, **options
            )
        except FileExistsError:  # how the client says that the condition does not hold
            return None
        return str(answer["generation"])

    def _version_in(self, info: dict[str, Any]) -> str:
        return str(info["generation"])


def _multipart(metadata: dict[str, str], data: bytes) -> bytes:
    """Return an object and what is said of it as one body."""
    parts = (("application/json", json.dumps(metadata).encode()), ("application/octet-stream", data))
    body = b"".join(f"--{_BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode() + part + b"\r\n" for kind, part in parts)
    return body + f"--{_BOUNDARY}--".encode()
