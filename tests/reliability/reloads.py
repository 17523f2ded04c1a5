"""Versions that come and go while clients ask, and versions whose files are damaged."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from tests.reliability.load import Load
from tests.reliability.outcomes import Outcomes
from tests.reliability.servers import CONFIG, ServerProcess, model, write_version

from normfold.protos import grpc_service as pb

#: Right answers between two changes.
BETWEEN = 20


def reload(address: str, name: str = "good") -> str:
    """Have the server load the model again; "" or the sentence why not. Raises grpc.RpcError for anything else."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/RepositoryModelLoad",
            request_serializer=pb.RepositoryModelLoadRequest.SerializeToString,
            response_deserializer=pb.RepositoryModelLoadResponse.FromString,
        )
        try:
            call(pb.RepositoryModelLoadRequest(model_name=name), timeout=60)
        except grpc.RpcError as error:
            details = error.details() or ""
            if "internal error, id" in details or error.code() not in STATUSES:
                raise
            return details
    return ""


#: The statuses of a load that fails, as Triton has them.
STATUSES = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL}


def swap_versions(server: ServerProcess, repository: Path, times: int) -> Outcomes:
    """``times`` times the next version is written and loaded, and the one before is deleted."""
    folder = repository / "good"
    with Load(server.address) as load:
        for version in range(2, 2 + times):
            load.wait_for(BETWEEN)
            write_version(folder, version)
            assert reload(server.address) == ""
            shutil.rmtree(folder / str(version - 1))
        load.wait_for(BETWEEN)
    return load.outcomes


@dataclass
class Damage:
    """What became of the load, and of the damaged files: refused with a sentence, or loaded all the same."""

    outcomes: Outcomes
    refused: int = 0
    loaded: int = 0
    sentences: set[str] = field(default_factory=set)


#: Files that can be damaged, below the model's folder; "V" is the new version.
FILES = ("V/model.onnx", "V/manifest.json", "config.pbtxt", "labels.txt")


def damaged(data: bytes, chance: random.Random) -> bytes:
    """``data`` cut somewhere, with a flipped bit, with a flipped byte, empty, or with bytes behind."""
    kind, at = chance.randrange(5), chance.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return b""
    if kind == 2:
        return data + chance.randbytes(chance.randint(1, 64))
    flipped = bytearray(data)
    flipped[at] ^= 1 << chance.randrange(8) if kind == 3 else 0xFF
    return bytes(flipped)


def damage_files(server: ServerProcess, repository: Path, times: int, seed: int = 0) -> Damage:
    """``times`` times a new version comes with a damaged file, and is loaded; afterwards it is taken away again.

    The version has a manifest, so what it answers is never something else than what was written.
    """
    chance = random.Random(seed)
    folder = repository / "good"
    first = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    whole = {"config.pbtxt": CONFIG.encode(), "labels.txt": (folder / "labels.txt").read_bytes()}
    with Load(server.address) as load:
        found = Damage(load.outcomes)
        for number in range(times):
            load.wait_for(BETWEEN)
            version = first + 1 + number
            target = FILES[number % len(FILES)].replace("V", str(version))
            data = model(version)
            digest = hashlib.sha256(data).hexdigest()
            manifest = json.dumps({"files": {"model.onnx": {"bytes": len(data), "sha256": digest}}}).encode()
            files = whole | {f"{version}/model.onnx": data, f"{version}/manifest.json": manifest}
            files[target] = damaged(files[target], chance)
            (folder / str(version)).mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            if why := reload(server.address):
                found.refused += 1
                found.sentences.add(why)
            else:
                found.loaded += 1
            load.wait_for(BETWEEN)
            shutil.rmtree(folder / str(version))
            for name, content in whole.items():
                (folder / name).write_bytes(content)
            assert reload(server.address) == ""
    return found
