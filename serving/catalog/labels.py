"""The names of a model's classes, and what is odd about them: such a model is served, and the log has a warning."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from normfold.counting import counted
from normfold.protos import model_config as mc
from normfold.serving.catalog.repository import Files
from normfold.serving.errors import ConfigError
from normfold.serving.wire.classification import read_labels
from normfold.serving.wording import quoted

log = logging.getLogger(__name__)

#: A warning names this many labels that occur more than once.
_SHOWN = 3


def read(folder: Files, full: mc.ModelConfig) -> dict[str, tuple[str, ...]]:
    """The labels of each output whose configuration names a file of labels. Raises LoadError."""
    labels = {}
    for output in full.output:
        if output.label_filename:
            try:
                labels[output.name] = read_labels(folder.read(output.label_filename))
            except UnicodeDecodeError:
                raise ConfigError(f"label_filename {output.label_filename!r} is not UTF-8 text") from None
            for oddity in _oddities(labels[output.name], output):
                log.warning("model %s: %s", quoted(folder.name), oddity)
    return labels


def _oddities(labels: Sequence[str], output: mc.ModelOutput) -> Iterator[str]:
    """A sentence where the labels are not one name for each class."""
    file, name = output.label_filename, quoted(output.name)
    classes = math.prod(output.dims) if all(size >= 0 for size in output.dims) else None
    has = f"{counted(len(labels), 'label')}, output {name} {counted(classes or 0, 'class', 'classes')}"
    if classes is not None and len(labels) < classes:
        yield f"{file} has {has}: the others are answered by number"
    elif classes is not None and len(labels) > classes:
        yield f"{file} has {has}: is it the file of another model?"
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        shown = ", ".join(quoted(label) for label in twice[:_SHOWN])
        yield f"{file} has {shown}{' and others' if len(twice) > _SHOWN else ''} more than once"
    if "" in labels:
        yield f"{file} has an empty line, which is the name of class {labels.index('')}"
