"""Azure Blob Storage."""

from typing import Any

from fsspec.asyn import sync

from diffmm_dist.stores.store import Store


class AzureStore(Store):
    """Azure Blob Storage, whose tags make conditional writes possible."""

    def put_if(self, path: str, data: bytes, *, version: str | None) -> str | None:
        """Write a blob under a condition; see ``Store.put_if``."""
        files = self.file_system()
        container, _, name = path.partition("/")
        condition = {"If-None-Match": "*"} if version is None else {"If-Match": version}
        blob = files.service_client.get_blob_client(container, name)
        try:
            answer = sync(files.loop, blob.upload_blob, data, overwrite=True, headers=condition)
        except Exception as error:  # of the client's many kinds
            if getattr(error, "status_code", 0) in (404, 409, 412) and "ContainerNotFound" not in str(error):
                return None
            raise
        return str(answer["etag"])

    def _version_in(self, info: dict[str, Any]) -> str:
        return str(info["etag"])

    def reason(self, uri: str, error: Exception) -> Exception:
        """Return the first sentence of an error; numbers of requests and XML follow."""
        return OSError(str(error).partition("RequestId:")[0])
