"""The option --repository of ``normfold serve``: a path, or the URL of object storage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from normfold.cli.terminal import one_line

if TYPE_CHECKING:
    from normfold.serving.settings import ServerConfig


def path_or_url(context: click.Context, option: click.Parameter, value: str) -> Path | str:
    """The value of the option as it is if it is a URL, else as a Path."""
    return value if "://" in value else Path(value)


def config_of(options: Mapping[str, object]) -> ServerConfig:
    """The config of a command line; of a URL it has the path of the image, which need not be there yet.

    Raises StartError.
    """
    from normfold.serving.settings import ServerConfig

    url = options["repository"]
    if not isinstance(url, str):
        return ServerConfig.from_options(options)
    from normfold.serving.remote.mirror import image_of

    return ServerConfig.from_options({**options, "repository": image_of(url), "remote": url})


def copy_here(config: ServerConfig) -> None:
    """Copy a repository on object storage to this machine. Raises StartError."""
    if not config.remote:
        return
    from normfold.serving.remote.mirror import Mirror

    click.echo(one_line(f"copying {config.remote} to {config.repository}"), err=True)
    Mirror(config.remote).start()
