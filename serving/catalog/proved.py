"""The sizes that a model file says it was proved for: read when the model loads, shown in its configuration."""

from __future__ import annotations

from normfold.protos import model_config as mc
from normfold.serving.errors import LoadError
from normfold.serving.runtime.session import Session
from normfold.serving.wire.proved_sizes import ALLOWED, BATCHNORMS, PROVED, ProvedSizes, parse


def read(session: Session) -> ProvedSizes | None:
    """The sizes that the file of ``session`` was proved for; None for the file of another exporter.

    Raises LoadError where the file's metadata about them cannot be read, or do not belong to its inputs.
    """
    text = session.metadata.get(PROVED)
    if text is None:
        return None
    try:
        sizes = parse(text)
    except ValueError as error:
        raise LoadError(f"{PROVED} in the file's metadata cannot be used: {error}") from None
    shapes = {tensor.name: tensor.shape for tensor in session.inputs}
    for name, dims in sizes.inputs.items():
        if name not in shapes or not _fits(dims, shapes[name]):
            has = f"the file has {list(shapes[name] or ())}" if name in shapes else "the file has no such input"
            raise LoadError(f"{PROVED} in the file's metadata says that input {name!r} is {list(dims)}, but {has}")
    return sizes


def _fits(dims: tuple[int | str, ...], shape: tuple[int, ...] | None) -> bool:
    """Whether an input that the file declares with ``shape`` (None: of any rank) may have the dimensions ``dims``."""
    return shape is None or (
        len(shape) == len(dims) and all(has == -1 or has == size for has, size in zip(shape, dims, strict=True))
    )


def describe(full: mc.ModelConfig, session: Session, allowed: bool) -> None:
    """Write what the file says of its proof and its BatchNorms into the configuration in force.

    Batches are kept within the sizes that were proved unless ``allowed``.

    Raises as ``read``.
    """
    sizes = read(session)
    if BATCHNORMS in session.metadata:
        full.parameters[BATCHNORMS].string_value = session.metadata[BATCHNORMS]
    if sizes is None:
        return
    full.parameters[PROVED].string_value = session.metadata[PROVED]
    if allowed:
        full.parameters[ALLOWED].string_value = "1"
    else:
        _limit_batches(full, sizes)


def _limit_batches(full: mc.ModelConfig, sizes: ProvedSizes) -> None:
    if not full.max_batch_size or sizes.batch is None:
        return
    batch = sizes.dimensions[sizes.batch]
    if batch.high is not None and batch.high < full.max_batch_size:
        full.max_batch_size = batch.high
        preferred = full.dynamic_batching.preferred_batch_size if full.HasField("dynamic_batching") else []
        smaller = sorted({min(size, batch.high) for size in preferred})
        if smaller:
            full.dynamic_batching.preferred_batch_size[:] = smaller
    if batch.low % batch.step:  # the rows of two requests together may be no number of rows that was proved
        full.ClearField("dynamic_batching")
