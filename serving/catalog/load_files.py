"""The files that a load of one version reads: read once, so that what is tried and remembered is what is loaded."""

from __future__ import annotations

import hashlib

from normfold.protos import model_config as mc
from normfold.serving.catalog import config
from normfold.serving.catalog.repository import GOLDEN_FILE, Files, SentFolder
from normfold.serving.catalog.warmup import FOLDER


def needed(folder: Files, written: mc.ModelConfig, version: int) -> SentFolder:
    """The files that a load of ``version`` reads, in memory. Raises LoadError."""
    path = _model_path(written, version)
    files = {path: folder.read_model(version, path.partition("/")[2])}
    if (golden := folder.read_golden(version)) is not None:
        files[f"{version}/{GOLDEN_FILE}"] = golden
    names = _labels(written)
    for warmup in written.model_warmup:
        names += [f"{FOLDER}/{each.input_data_file}" for each in warmup.inputs.values() if each.input_data_file]
    files |= {name: folder.read(name) for name in names}
    return SentFolder(folder.name, files, {path: known for path, known in folder.digests.items() if path in files})


def digest(files: SentFolder, written: mc.ModelConfig, version: int) -> str:
    """The digest of those of ``files`` that, with the configuration, decide the answers: model file and labels.

    ``files`` are those that ``needed`` returns.
    """
    read = [files.sha256(path) for path in (_model_path(written, version), *_labels(written))]
    return hashlib.sha256(" ".join(read).encode()).hexdigest()


def contents(files: SentFolder) -> str:
    """The digest of all ``files``, also of those that only decide whether a version loads."""
    return hashlib.sha256(" ".join(f"{path} {files.sha256(path)}" for path in sorted(files.files)).encode()).hexdigest()


def _model_path(written: mc.ModelConfig, version: int) -> str:
    return f"{version}/{written.default_model_filename or config.MODEL_FILE}"


def _labels(written: mc.ModelConfig) -> list[str]:
    return [output.label_filename for output in written.output if output.label_filename]
