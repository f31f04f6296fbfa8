"""Objects below an address of Google Cloud Storage, `gs://BUCKET/FOLDER`, by TensorStore.

TensorStore finds the credentials (`GOOGLE_APPLICATION_CREDENTIALS`, those of `gcloud auth
application-default login`, or the account of a VM) and repeats what has failed on the way, so that
nothing is repeated here. Two of its calls hide a refusal: a listing without permission is empty,
and deleting a range deletes what it may. Objects are deleted by name, therefore.

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
    """The objects below an address.

    Args:
        address: `gs://BUCKET/FOLDER`.
        patient: Repeat what fails on the way for as long as TensorStore does by default, a quarter
            of an hour; otherwise for ten seconds.

    Raises:
        ValueError: That is no name of a bucket.
    """

    def __init__(self, address: str, *, patient: bool = False):
        self.address = address.rstrip("/")
        self.name, _, folder = self.address.removeprefix("gs://").partition("/")
        context = ts.Context({} if patient else {"gcs_request_retries": _BRIEF})
        spec = {"driver": "gcs", "bucket": self.name, "path": f"{folder}/"}
        try:
            self._store = ts.KvStore.open(spec, context=context).result()
        except ValueError as error:
            raise ValueError(
                f"{address} is no address of a bucket: {_reason(error)}; expected "
                "gs://BUCKET/FOLDER"
            ) from error

    def names(self) -> list[str]:
        """The names of all objects, in order; none also where there is no permission to list."""
        found = self._call("listing", "", self._store.list)
        return sorted(os.fsdecode(name) for name in found)

    def read(self, name: str) -> bytes | None:
        """The bytes of an object; None where there is none.

        Raises:
            PermissionError, ConnectionError: It cannot be read.
        """
        return self.read_version(name)[0]

    def read_version(self, name: str) -> tuple[bytes | None, bytes]:
        """As `read`, and which version of the object that is, or that there is none."""
        found = self._call("reading", name, functools.partial(self._store.read, name))
        return found.value if found.state == "value" else None, found.stamp.generation

    def write(self, name: str, data: bytes, *, over: bytes | None = None) -> bytes | None:
        """Writes an object, whole or not at all.

        Args:
            name: Of the object.
            data: All of its bytes.
            over: The version that it replaces, from `read_version`; whichever there is by default.

        Returns:
            The new version; None where there is another one than `over`, and nothing was written.

        Raises:
            FileNotFoundError: There is no such bucket.
            PermissionError, ConnectionError: It cannot be written.
        """
        call = functools.partial(self._store.write, name, data, if_equal=over)
        return self._call("writing", name, call).generation or None

    def delete(self, name: str) -> None:
        """Deletes an object, if there is one.

        Raises:
            PermissionError, ConnectionError: It cannot be deleted.
        """
        self._call("deleting", name, functools.partial(self._store.write, name, None))

    def _call(self, doing: str, name: str, call: Any) -> Any:
        try:
            return call().result()
        except Exception as error:  # which exception it is depends on what has failed
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
        """The error for what this machine may not do in this bucket."""
        return PermissionError(
            f"no permission on the bucket '{self.name}': {what} was refused ({reason}); allow it "
            f"to {_account()}: gcloud storage buckets add-iam-policy-binding gs://{self.name} "
            f"--member=serviceAccount:ACCOUNT --role={ROLE}"
        )


def _account() -> str:
    """Who asks, as far as one can know without asking anyone."""
    if file := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return f"the account of {file} (GOOGLE_APPLICATION_CREDENTIALS)"
    return "the account of `gcloud auth application-default login` or of this VM"


def _reason(error: Exception) -> str:
    """What TensorStore says, without the code before it and the details behind it."""
    text = re.sub(r"\s*\[[\w_]+='.*", "", " ".join(str(error).split()))
    return re.sub(r"^[A-Z_]+: ", "", text)[:300].rstrip(".")
