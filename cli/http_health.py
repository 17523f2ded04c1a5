"""A question to the HTTP port of a server: whether it, or one of its models, is ready."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException
from urllib.parse import quote, urlsplit

#: The port that ``normfold serve`` opens where nobody says otherwise.
EXAMPLE = "http://127.0.0.1:8002"

#: The answers that say whether something is ready.
_READY = {200: True, 503: False}


def is_ready(url: str, model: str, version: str, timeout: float) -> bool:
    """Whether the server whose HTTP port is ``url``, or its ``model``, is ready.

    Raises ValueError for a wrong URL, OSError where there is no answer, or no such model. No proxy of the environment
    is asked.
    """
    host, port = _host_and_port(url)
    path = "/readyz"
    if model:
        of_version = f"/versions/{quote(version, '')}" if version else ""
        path = f"/v2/models/{quote(model, '')}{of_version}/ready"
    connection = HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.read(200).decode("utf-8", "replace").strip()
    except HTTPException:
        raise OSError(f"{url} does not answer in HTTP; is it the port of --metrics-listen?") from None
    except OSError as error:
        raise OSError(f"{url} does not answer: {error.strerror or error}; is the server started?") from None
    finally:
        connection.close()
    if answer.status == 404 and model:
        raise OSError(f"the server has no model {model!r}")
    if answer.status not in _READY:
        raise OSError(f"{url} answered with {answer.status}: {said}")
    return _READY[answer.status]


def _host_and_port(url: str) -> tuple[str, int]:
    wrong = ValueError(f"--address {url}: expected http://host:port of the metrics port, such as {EXAMPLE}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # the port is no number
        raise wrong from None
    if not host or not port or url.rstrip("/") != f"http://{parts.netloc}":
        raise wrong
    return host, port
