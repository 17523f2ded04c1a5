"""The two sides of ``normfold verify``: each is code, a file, a version's directory or a served model."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.plain_file import read_plain_file

if TYPE_CHECKING:
    from normfold.export.inputs.samples import SampleFile
    from normfold.export.proof.compare import Side
    from normfold.export.sources.ends import Ends
    from normfold.serving.client.connection import Credentials

__all__ = ["Code", "ends_in", "is_code", "is_served", "require", "sides_of", "with_ends"]

_SERVED = re.compile(r"(?:grpc://)?(?P<address>[\w.\-\[\]]+:\d+)/(?P<model>[\w.\-]+)(?:/(?P<version>\d+))?\Z")


@dataclass
class Code:
    """The weights and arguments for the sides that are code."""

    #: Files that no side has taken yet, in the order of the sides.
    weights: list[Path]
    weights_key: str
    arguments: dict[str, Any]


def sides_of(
    texts: tuple[str, str], code: Code, inputs: tuple[str, ...], samples: list[SampleFile], credentials: Credentials
) -> tuple[Side, Side]:
    """Open both; without ``inputs``, a side that is code takes the inputs that the other side describes."""
    if is_code(texts[0]) and not is_code(texts[1]):
        second, first = sides_of((texts[1], texts[0]), code, inputs, samples, credentials)
        return first, second
    first = _side(texts[0], code, inputs, samples, credentials)
    described = inputs
    if not described and is_code(texts[1]):
        described = _declared(texts[0], credentials) if first.origin is None else tuple(map(str, first.origin.specs))
    return first, _side(texts[1], code, described, samples, credentials)


def _is_file(text: str) -> bool:
    return Path(text).is_dir() or Path(text).suffix in (".onnx", ".pt2")


def is_code(text: str) -> bool:
    """Whether ``text`` names a network in Python."""
    return not _is_file(text) and not is_served(text)


def is_served(text: str) -> bool:
    """Whether ``text`` names a model of a server."""
    return _SERVED.match(text) is not None and not Path(text).exists()


def _side(text: str, code: Code, inputs: tuple[str, ...], samples: list[SampleFile], credentials: Credentials) -> Side:
    from normfold.export.proof.compare import Side
    from normfold.export.sources.opening import open_origin
    from normfold.export.sources.origin import Request

    if is_served(text) and (served := _SERVED.match(text)):
        return Side(text, _served(served["address"], served["model"], served["version"] or "", credentials))
    path = Path(text) / "model.onnx" if Path(text).is_dir() else Path(text)
    mine = code.weights.pop(0) if code.weights and is_code(text) else None
    origin = open_origin(
        Request(
            source=str(path) if _is_file(text) else text,
            weights=mine,
            weights_key=code.weights_key if mine is not None else "",
            untrained=is_code(text) and mine is None,  # wrong weights are seen in the comparison
            inputs=inputs,
            arguments=code.arguments if is_code(text) else {},
        ),
        samples,
    )
    return Side(text, origin.run, origin)


def with_ends(side: Side, ends: Ends) -> Side:
    """``side`` with what the export computes before and behind the network."""
    from normfold.export.errors import InputSpecError
    from normfold.export.proof.compare import Side
    from normfold.export.sources import ends as around

    if side.origin is None:
        if ends.anything:
            raise InputSpecError(f"--standardize, --softmax, --sigmoid: '{side.name}' is served, give a file or code")
        return side
    origin = around.with_ends(side.origin, ends)
    return Side(side.name, origin.run, origin)


def ends_in(report: Path) -> list[str]:
    """The notes of an export.json on what is computed before and behind the network."""
    from normfold.export.sources.ends import tells_of_ends

    try:
        notes = json.loads(read_plain_file(report))["notes"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [note for note in notes if isinstance(note, str) and tells_of_ends(note)]


def require(text: str) -> None:
    """Raise ExportError for a path to a file, a version or a model that is not there."""
    from normfold.export.errors import ExportError

    path = Path(text)
    if text.startswith(("http://", "https://")):
        raise ExportError(f"'{text}': leave out {text.partition('://')[0]}://, a served model is HOST:PORT/MODEL")
    if re.fullmatch(r"[^/]*:\d+", text) and not path.exists():
        raise ExportError(f"'{text}' does not say which model: a served model is HOST:PORT/MODEL, such as {text}/ecg")
    if path.is_file() or (path / "model.onnx").is_file() or ":" in text:
        return
    if path.is_dir():
        versions = [p.name for p in path.iterdir() if p.name.isdigit() and (p / "model.onnx").is_file()]
        last = max(versions, key=int, default="")
        models = sorted(p.parent for p in path.glob("*/*/model.onnx"))
        hint = f"; it is a model's directory, so name a version: {path / last}" if last else ""
        if not last and models:
            hint = f"; it is a repository, so name a model and a version: {models[-1]}"
        raise ExportError(f"'{text}' holds no model.onnx{hint}")
    parent = path.parent
    beside = sorted(p.name for p in parent.iterdir()) if parent.is_dir() else []
    there = f"; '{parent}' holds {', '.join(beside[:8])}" if beside and parent != Path() else ""
    raise ExportError(
        f"there is no file or directory '{text}'{there}. Expected FILE.py:NAME, a .onnx or .pt2 file, a version's "
        "directory, or HOST:PORT/MODEL"
    )


def _declared(text: str, credentials: Credentials) -> tuple[str, ...]:
    """The inputs of a served model as ``--input`` writes them; none where the server does not know proved sizes."""
    from normfold.export.errors import ExportError
    from normfold.export.inputs.specs import Dimension
    from normfold.serving.client.client import Client, ClientError
    from normfold.serving.client.sizes import proved_sizes

    served = _SERVED.match(text)
    assert served is not None
    try:
        with Client(served["address"], tls=credentials.tls, token=credentials.token) as client:
            metadata = client.model_metadata(served["model"], served["version"] or "")
    except (ClientError, ValueError) as error:
        raise ExportError(f"{served['address']}/{served['model']}: {error}") from error
    sizes = proved_sizes(metadata)
    if sizes is None:
        return ()
    ranges = {name: str(Dimension(name, one.low, one.high, one.step)) for name, one in sizes.dimensions.items()}
    return tuple(
        f"{tensor.name}={tensor.datatype}[{','.join(ranges.get(str(d), str(d)) for d in sizes.inputs[tensor.name])}]"
        for tensor in metadata.inputs
        if tensor.name in sizes.inputs
    )


def _served(address: str, model: str, version: str, credentials: Credentials) -> Any:
    """Return a function from named arrays to named arrays that asks a server."""
    from normfold.export.errors import ExportError
    from normfold.serving.client.client import Client, ClientError

    try:
        client = Client(address, tls=credentials.tls, token=credentials.token)
    except ValueError as error:
        raise ExportError(str(error)) from None

    def run(arrays: Any) -> Any:
        try:
            return client.infer(model, arrays, version=version)
        except (ClientError, ValueError) as error:
            raise ExportError(f"{address}/{model}: {error}") from error

    return run
