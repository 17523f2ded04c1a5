"""``normfold sign`` writes the manifest of a model's versions, and signs them."""

from __future__ import annotations

from pathlib import Path

import click

from normfold.cli.needs import Need, needing
from normfold.cli.output import told_after
from normfold.cli.terminal import one_line


@click.command(short_help="Write manifests of model versions, and sign them.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    help="Sign with this private key (Ed25519, PEM). Without it only missing manifests are written.",
)
@click.option("--name", help="The name that the model is served under. Default: that of its folder.")
@needing(Need(("name",), "key", lambda values: values["key"] is not None, "without --key: a manifest holds no name"))
def sign(folder: Path, key: Path | None, name: str | None) -> None:
    """Write manifest.json into every version in FOLDER that has none, and with --key sign every version.

    FOLDER is a model's folder, such as repository/surnames, or one version's, repository/surnames/1. The signature is
    under the model's name, the version's number, its files, config.pbtxt and the labels. Sign again after any of them
    changed.

    \b
    Examples:
      openssl genpkey -algorithm ed25519 -out signing.key
      openssl pkey -in signing.key -pubout -out signing.pub
      normfold sign repository/surnames --key signing.key
      normfold serve --repository repository --require-signature signing.pub

    A version whose files are not those of its manifest is not signed.
    """
    from normfold.serving.access import signatures
    from normfold.serving.catalog.repository import MANIFEST_FILE, NAME, ModelFolder
    from normfold.serving.catalog.sealing import completed_manifest
    from normfold.serving.errors import LoadError, StartError
    from normfold.whole_file import write_whole

    one = folder.name if folder.name.isdecimal() else None
    home = folder.resolve().parent if one is not None else folder.resolve()
    model = ModelFolder(name or home.name, home)
    if not NAME.fullmatch(model.name):
        raise click.UsageError(f"{model.name!r} is not a model's name; give one with --name")
    done: list[str] = []
    try:
        private = None if key is None else signatures.read_private_key(key)
        if not folder.is_dir():
            what = "a file" if folder.exists() else "not there"
            raise LoadError(f"{folder} is {what}; give a model's folder{'' if one is None else _in(folder.parent)}")
        numbers = [number for number in model.versions() if one is None or number == int(one)]
        if not numbers:
            raise LoadError(f"{folder} holds no version of a model, such as {folder / '1' / 'model.onnx'}{_in(folder)}")
        for number in numbers:
            where = home / str(number)
            manifest, made = completed_manifest(model, number)
            if made:
                write_whole(where / MANIFEST_FILE, manifest)
                done.append(f"wrote {where / MANIFEST_FILE}")
            if private is not None:
                said = signatures.statement(model.name, number, manifest, model.beside())
                write_whole(where / signatures.SIGNATURE_FILE, signatures.sign(private, said))
                done.append(f"signed {where}")
            elif not made:
                done.append(f"{where}: its files are those of its {MANIFEST_FILE}; nothing to write")
    except (LoadError, StartError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or folder} cannot be written: {error.strerror}") from None
    finally:
        _say(done)


def _say(done: list[str]) -> None:
    """Print what was done; at the end, so that no version stays without its signature where the output has no room."""
    with told_after("; ".join(done)):
        for one in done:
            click.echo(one_line(one))


def _in(folder: Path) -> str:
    """The end of a sentence about a folder that is no model's: the models and versions in it."""
    try:
        files = (*folder.glob("*/*.onnx"), *folder.glob("*/*/*.onnx"))
        inside = sorted(path.parent for path in files if path.parent.name.isdecimal())
    except OSError:
        return ""
    models = sorted({str(path.parent) for path in inside if path.parent != folder})
    found = models or sorted({str(path) for path in inside})
    return f"; {folder} holds {', '.join(found[:8])}" if found else ""
