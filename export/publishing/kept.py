"""The model's files that another version brings to a model that is there: its labels may change, the rest is kept.

Where what is kept contradicts the export (a largest batch, a version policy), a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format

from normfold.export.inputs.sizes import batch_dimension
from normfold.export.inputs.specs import InputSpec
from normfold.export.publishing.destination import Destination, read_config, replaces_model
from normfold.protos import model_config
from normfold.protos.config_text import parse_config

__all__ = ["changed_files", "kept_notes", "largest_batch"]

LABELS, CONFIG = "labels.txt", "config.pbtxt"


def changed_files(directory: Path, model_files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of the model in ``directory`` that a version with the same inputs and outputs changes.

    These are the labels, where it has others, and config.pbtxt, where no output names the labels yet.
    """
    kept = read_config(directory)
    if LABELS not in model_files or kept is None:
        return {}
    new = parse_config(model_files[CONFIG].decode())
    named = next((o.name for o in new.output if o.label_filename), "")
    output = next((o for o in kept.output if o.name == named), None)
    file = output.label_filename if output is not None and Path(output.label_filename).name else LABELS
    files = {}
    path = directory / Path(file).name
    if not path.is_file() or path.read_bytes() != model_files[LABELS]:
        files[path.name] = model_files[LABELS]
    if output is not None and output.label_filename != path.name:
        output.label_filename = path.name
        files[CONFIG] = _with_labels((directory / CONFIG).read_text("utf-8-sig"), kept, named, path.name).encode()
    return files


def kept_notes(
    destination: Destination, model_files: Mapping[str, bytes], specs: Sequence[InputSpec]
) -> tuple[str, ...]:
    """Return what the user should know of the files that are there. Raises PublishError where they cannot stay."""
    directory = destination.directory
    if not directory.is_dir() or replaces_model(destination, model_files):
        return ()
    kept, notes = read_config(directory), []
    assert kept is not None
    path, number = directory / CONFIG, destination.number
    changed = changed_files(directory, model_files)
    if labels := next((name for name in changed if name != CONFIG), ""):
        count = len(model_files[LABELS].decode().splitlines())
        these = "this label" if count == 1 else f"these {count} labels"
        notes.append(f"'{directory / labels}' now holds {these}, for every version of '{destination.name}'")
    batch = batch_dimension(specs)
    if kept.max_batch_size and batch and batch.high and batch.high != kept.max_batch_size:
        notes.append(
            f"'{path}' keeps max_batch_size {kept.max_batch_size}: it is of all versions, and the person who runs the "
            f"server may have chosen it; for the {batch} of this version write max_batch_size: {batch.high} there"
        )
    served = _served(kept, [*destination.others, number])
    if number not in served:
        notes.append(
            f"version {number} will not be served: the version_policy in '{path}' chooses "
            f"{', '.join(map(str, served)) or 'none'} of the versions that are there; to serve it: "
            f"normfold use {destination.name} {number} --repository {directory.parent}"
        )
    return tuple(notes)


def largest_batch(destination: Destination, model_files: Mapping[str, bytes]) -> int:
    """Return the ``max_batch_size`` that will be in force for the version; 0: the model has no batch dimension."""
    new = parse_config(model_files[CONFIG].decode())
    kept = read_config(destination.directory)
    return new.max_batch_size if kept is None or replaces_model(destination, model_files) else kept.max_batch_size


def _served(config: model_config.ModelConfig, versions: Sequence[int]) -> list[int]:
    """Return those of ``versions`` that the version policy chooses; without one, the highest."""
    policy, numbers = config.version_policy, sorted(set(versions))
    if policy.HasField("all"):
        return numbers
    if policy.HasField("specific"):
        return [number for number in numbers if number in policy.specific.versions]
    return numbers[-(policy.latest.num_versions or 1) :]


def _with_labels(text: str, wanted: model_config.ModelConfig, output: str, file: str) -> str:
    """Return ``text`` with the labels of ``output`` named; comments and order stay where the text allows it."""
    begin = re.compile(r"(\boutput\s*:?\s*[\[{][^}]*?\bname\s*:\s*([\"'])" + re.escape(output) + r"\2)")
    for match in begin.finditer(text):
        written = f'{text[: match.end()]} label_filename: "{file}"{text[match.end() :]}'
        try:
            if parse_config(written) == wanted:
                return written
        except text_format.ParseError:  # the name was found in another place, such as a comment
            continue
    return text_format.MessageToString(wanted)
