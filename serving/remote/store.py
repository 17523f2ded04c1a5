"""Object storage through fsspec: what is below a URL, and one object into a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from normfold.serving.errors import StartError, UnsafeModel
from normfold.serving.wording import quoted

T = TypeVar("T")

#: A URL of object storage, and no path, has this in it.
SCHEME = "://"
#: Fields of an object's listing that change when its content does, in the order of preference; each store has one.
_MARKS = ("ETag", "etag", "md5Hash", "blob_id", "oid", "mtime", "LastModified", "updated", "created", "uid")
#: Settings of the libraries, unless the user gives others. gcsfs would ask for the type of the bucket over gRPC before
#: each object, and warn each time where the answer is refused; huggingface_hub would send telemetry.
_SETTINGS = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
#: The end of a sentence about an error, by the names of its classes; the libraries share no base class.
_HINTS: Mapping[str, str] = {
    "NoCredentialsError": "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "PartialCredentialsError": "the credentials are not complete; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "DefaultCredentialsError": "no credentials were found; set GOOGLE_APPLICATION_CREDENTIALS to the key's file",
    "LocalTokenNotFoundError": "no token was found; set HF_TOKEN",
    "GatedRepoError": "the repository is gated; set HF_TOKEN to a token that may read it",
    "PermissionError": "the credentials may not list or read it",
    "FileNotFoundError": "there is no such bucket, repository or folder; look at the URL, and at the endpoint that it "
    "is looked for at (AWS_ENDPOINT_URL, HF_ENDPOINT)",
}


class RemoteError(StartError):
    """The object storage cannot be read; the message says why and what to set."""

    #: Whether the storage may answer later: a network that is away, a service that is down.
    passing: bool = False
    #: Whether only some objects failed: the storage was listed, and the others are in the image.
    partial: bool = False
    #: Whether what was asked for does not exist.
    missing: bool = False


@dataclass(frozen=True)
class RemoteObject:
    """One object: its size in bytes, and what changes when its content does."""

    key: str
    size: int
    mark: str


class Store:
    """One URL; used on one thread at a time. Libraries are imported when it is first asked."""

    def __init__(self, url: str) -> None:
        """Raises RemoteError for a URL of a scheme that fsspec does not know, or without the packages for it."""
        self.url = url
        try:
            import fsspec
        except ImportError:
            raise RemoteError(_no_packages(url)) from None
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            self._files, self._root = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
        except ImportError:
            raise RemoteError(_no_packages(url)) from None
        except Exception as error:
            raise _explained(url, error) from None

    def objects(self) -> dict[str, RemoteObject]:
        """The objects below the URL by their path there; one of path "" if the URL is an object. Raises RemoteError."""

        def find() -> dict[str, dict[str, Any]]:
            self._files.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._files.find(self._root, detail=True)
            if not found and not self._files.exists(self._root):
                raise FileNotFoundError
            return found

        found = self._asked(find)
        root = str(self._root).rstrip("/")
        return {
            key[len(root) :].strip("/"): RemoteObject(key, int(info.get("size") or 0), _mark(info))
            for key, info in found.items()
            if (key == root or key.startswith(f"{root}/")) and not key.endswith("/") and info.get("type") == "file"
        }

    def fetch(self, found: RemoteObject, path: Path) -> None:
        """Write the content of an object to ``path``. Raises RemoteError, UnsafeModel if it is gone or has changed."""
        inside = found.key[len(self._root) :].strip("/")
        try:
            self._asked(lambda: self._files.get_file(found.key, str(path)), inside)
        except RemoteError as error:
            raise (UnsafeModel(f"{path.name} is gone") if error.missing else error) from None
        if (size := path.stat().st_size) != found.size:
            raise UnsafeModel(f"{path.name} came with {size} bytes, the listing says {found.size}")

    def _asked(self, ask: Callable[[], T], inside: str = "") -> T:
        """The result of ``ask``. Raises RemoteError, which names the object ``inside`` the storage."""
        try:
            return ask()
        except Exception as error:  # each store has its own classes
            raise _explained(self.url, error, inside) from None


def _mark(info: Mapping[str, Any]) -> str:
    return next((f"{name} {info[name]}" for name in _MARKS if info.get(name)), "")


def _no_packages(url: str) -> str:
    return f"--repository {url}: packages for object storage are missing: pip install 'normfold[remote]'"


def _explained(url: str, error: Exception, inside: str = "") -> RemoteError:
    names = [each.__name__ for each in type(error).__mro__]
    hint = next((_HINTS[name] for name in names if name in _HINTS), None)
    if str(error).startswith("Protocol not known"):
        hint = f"{url.partition('://')[0]}:// is no storage that is known; use s3://, gs:// or hf://, or a folder"
    said = ": ".join(filter(None, [names[0], " ".join(str(error).split())[:300]]))
    what = f"{quoted(inside)} of repository {url}" if inside else f"repository {url}"
    found = RemoteError(f"{what} cannot be read: {hint or said}")
    found.passing, found.missing = hint is None, isinstance(error, FileNotFoundError)
    return found
