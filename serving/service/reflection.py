"""Server reflection, v1 and v1alpha: the descriptors of our private pool, for grpcurl and similar tools."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from google.protobuf.descriptor import FileDescriptor

from normfold.protos import reflection_v1, reflection_v1alpha
from normfold.protos.pool import pool
from normfold.serving.errors import Status
from normfold.serving.rpc.methods import Method
from normfold.serving.wording import quoted

VERSIONS = {"grpc.reflection.v1": reflection_v1, "grpc.reflection.v1alpha": reflection_v1alpha}
#: The longest name that is looked for, in characters; ours have less than 100. Its parts are looked up one by one.
SYMBOL_CHARACTERS = 512
SERVICES = tuple(f"{package}.ServerReflection" for package in VERSIONS)


def methods(services: Iterable[str]) -> list[Method]:
    """The methods of reflection; they describe ``services`` and reflection itself."""
    names = sorted({*services, *SERVICES})
    return [
        Method(
            f"/{package}.ServerReflection/ServerReflectionInfo",
            messages.ServerReflectionRequest,
            bidi_stream=_Reflection(messages, names).info,
        )
        for package, messages in VERSIONS.items()
    ]


class _Reflection:
    """One version of the service; the messages of the two versions have the same fields."""

    def __init__(self, messages: Any, services: list[str]) -> None:
        self._messages, self._services = messages, services

    async def info(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yield one answer for each request; for a name that is not found it holds an error."""
        async for request in requests:
            yield self._answer(request)

    def _answer(self, request: Any) -> Any:
        response = self._messages.ServerReflectionResponse(valid_host=request.host, original_request=request)
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                for name in self._services:
                    response.list_services_response.service.add(name=name)
            elif kind == "file_by_filename":
                self._files(response, pool().FindFileByName(request.file_by_filename))  # type: ignore[no-untyped-call]
            elif kind == "file_containing_symbol":
                self._files(response, _file_of(request.file_containing_symbol))
            elif kind == "all_extension_numbers_of_type":
                message = request.all_extension_numbers_of_type
                pool().FindMessageTypeByName(message)  # type: ignore[no-untyped-call]
                response.all_extension_numbers_response.base_type_name = message
            else:  # no file here has extensions
                raise KeyError
        except KeyError:
            response.error_response.error_code = Status.NOT_FOUND
            wanted = str(getattr(request, kind)) if kind else "an empty request"
            response.error_response.error_message = f"not found: {quoted(' '.join(wanted.split()))}"
        return response

    @staticmethod
    def _files(response: Any, file: FileDescriptor) -> None:
        """Add ``file`` and everything that it imports, each once."""
        todo, seen = [file], {file.name}
        while todo:
            each = todo.pop(0)
            response.file_descriptor_response.file_descriptor_proto.append(each.serialized_pb)
            for imported in each.dependencies:
                if imported.name not in seen:
                    seen.add(imported.name)
                    todo.append(imported)


def _file_of(symbol: str) -> FileDescriptor:
    """The file that defines a message, service, method, field or enum. Raises KeyError."""
    name = symbol if len(symbol) <= SYMBOL_CHARACTERS else ""
    while name:
        try:
            file: FileDescriptor = pool().FindFileContainingSymbol(name)  # type: ignore[no-untyped-call]
        except KeyError:
            name = name.rpartition(".")[0]
            if not name:
                raise
            continue
        if name == symbol or _has_member(file, name, symbol[len(name) + 1 :]):
            return file
        raise KeyError(symbol)
    raise KeyError(symbol)


def _has_member(file: FileDescriptor, name: str, member: str) -> bool:
    service = next((s for s in file.services_by_name.values() if s.full_name == name), None)
    return service is not None and member in service.methods_by_name
