"""Read, write, list and delete objects of Google Cloud Storage with TensorStore.

TensorStore finds the credentials (`GOOGLE_APPLICATION_CREDENTIALS`, those of `gcloud auth
application-default login`, or the account of a VM). It also retries requests that fail in transit,
so this module does not retry. Two of its calls hide a missing permission: listing returns nothing,
and deleting a range deletes only the objects it may delete. Objects are therefore deleted by name.

Invariant: a method has done what it says, or has raised an error that says what to do.
"""

import functools
import os
import re
from typing import Any

import tensorstore as ts

ROLE = "roles/storage.objectAdmin"

_BRIEF = {"max_retries": 4, "initial_delay": "1s", "max_delay": "4s"}


class Bucket:
    """The objects below one address.

    Args:
        address: `gs://BUCKET/FOLDER`.
        patient: Whether failed requests are retried for about 15 minutes, TensorStore's default.
            Otherwise they are retried for about 10 seconds.

    Raises:
        ValueError: The bucket's name is not valid.
    """

    def __init__(self, address: str, *, patient: bool = False):
        self.address = address.rstrip("/")
        self.name, _, folder = self.address.removeprefix("gs://").partition("/")
        context = ts.Context({} if patient else {"gcs_request_retries": _BRIEF})
        spec = {"driver": "gcs", "bucket": self.name, "path": folder and f"{folder}/"}
        try:
            self._store = ts.KvStore.open(spec, context=context).result()
        except ValueError as error:
            raise ValueError(
                f"{address} is no address of a bucket: {_reason(error)}; expected "
                "gs://BUCKET/FOLDER"
            ) from error

    def names(self) -> list[str]:
        """Return the sorted names of all objects.

        The list is also empty where the permission to list is missing.
        """
        found = self._call("listing", "", self._store.list)
        return sorted(os.fsdecode(name) for name in found)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of an object, or None if it does not exist.

        Raises:
            PermissionError, ConnectionError: The object cannot be read.
        """
        return self.read_version(name)[0]

    def read_version(self, name: str) -> tuple[bytes | None, bytes]:
        """Return what `read` returns, and the version of the object or of its absence."""
        found = self._call("reading", name, functools.partial(self._store.read, name))
        return found.value if found.state == "value" else None, found.stamp.generation

    def write(self, name: str, data: bytes, *, over: bytes | None = None) -> bytes | None:
        """Write an object, whole or not at all.

        Args:
            name: Name of the object.
            data: Its complete content.
            over: The version to replace, from `read_version`. By default any version is replaced.

        Returns:
            The new version, or None if the bucket holds another version than `over`. Nothing was
            written then.

        Raises:
            FileNotFoundError: The bucket does not exist.
            PermissionError, ConnectionError: The object cannot be written.
        """
        call = functools.partial(self._store.write, name, data, if_equal=over)
        return self._call("writing", name, call).generation or None

    def delete(self, name: str) -> None:
        """Delete an object if it exists.

        Raises:
            PermissionError, ConnectionError: The object cannot be deleted.
        """
        self._call("deleting", name, functools.partial(self._store.write, name, None))

    def _call(self, doing: str, name: str, call: Any) -> Any:
        try:
            return call().result()
        except Exception as error:  # TensorStore raises various classes
            raise self._explained(f"{doing} {self.address}/{name}", error) from error

    def _explained(self, what: str, error: Exception) -> Exception:
        reason = _reason(error)
        if str(error).startswith(("PERMISSION_DENIED", "UNAUTHENTICATED")):
            return self.refused(what, reason)
        if str(error).startswith("NOT_FOUND"):
            return FileNotFoundError(
                f"bucket '{self.name}' does not exist, {what} failed ({reason}); name another, or "
                f"make it: gcloud storage buckets create gs://{self.name}"
            )
        return ConnectionError(
            f"{what} failed ({reason}); check the network, and give the same command again"
        )

    def refused(self, what: str, reason: str) -> PermissionError:
        """Return the error for a refused request, with the command that allows it."""
        return PermissionError(
            f"no permission on the bucket '{self.name}': {what} was refused ({reason}); allow it "
            f"to {_account()}: gcloud storage buckets add-iam-policy-binding gs://{self.name} "
            f"--member=serviceAccount:ACCOUNT --role={ROLE}"
        )


def _account() -> str:
    """Describe the account in use, as far as the environment tells."""
    if file := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return f"the account of {file} (GOOGLE_APPLICATION_CREDENTIALS)"
    return "the account of `gcloud auth application-default login` or of this VM"


def _reason(error: Exception) -> str:
    """Return TensorStore's message without the status code before it and the details after it."""
    text = re.sub(r"\s*\[[\w_]+='.*", "", " ".join(str(error).split()))
    return re.sub(r"^[A-Z_]+: ", "", text)[:300].rstrip(".")
