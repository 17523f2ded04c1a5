"""``normfold doctor`` reports what is installed, what of it really loads, and whether a server can start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from normfold.cli.output import json_of
from normfold.counting import counted
from normfold.telemetry import VARIABLE

if TYPE_CHECKING:
    from normfold.serving.diagnosis import Cpus, Diagnosis


@click.command(short_help="Say what is installed, what really loads, and whether a server can start.")
@click.option("--device", default="cpu", show_default=True, help="The --device that the server will get.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(device: str, as_json: bool) -> None:
    """Report what is installed, what of it really loads, and whether a server can start.

    onnxruntime lists the execution providers that it was built with. This command tries each one that a server could
    use: in a process of its own it makes a session with one convolution and runs it. For a provider that fails, it
    prints the shared library that is missing, or the message of onnxruntime.

    It also reports two installed onnxruntime that overwrite each other, and the command that repairs this; the
    versions of the packages that the server needs; the CPUs that this process may really use, by affinity and by the
    cgroup's quota, and the numbers of workers and threads that follow from them; whether onnxruntime sends telemetry,
    which normfold switches off; and the cache folder, which may be deleted at any time.

    \b
    Exit code 0: a server on --device can start; 1: it cannot, and the last lines give the reasons.

    \b
    Examples:
      normfold doctor
      normfold doctor --device cuda:1 && normfold serve --repository repository --device cuda:1
      normfold doctor --json
    """
    try:
        from normfold.serving.diagnosis import diagnose
        from normfold.serving.errors import StartError
    except ImportError as error:
        raise click.ClickException(f"{error}: this installation is incomplete; install normfold again") from None
    try:
        found = diagnose(device)
    except StartError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json_of({**asdict(found), "can_serve": not found.problems}, indent=2))
    else:
        for line in _lines(found):
            click.echo(line)
        for problem in found.problems:
            click.echo(f"Error: {problem}", err=True)
        if not found.problems:
            click.echo(f"A server on --device {device} can start.")
    sys.exit(1 if found.problems else 0)


def _lines(found: Diagnosis) -> Iterator[str]:
    width = 26
    yield f"{'Python':{width}}{found.python}"
    for name, version in found.versions.items():
        yield f"{name:{width}}{version or 'not installed'}"
    yield f"{'onnxruntime from':{width}}{', '.join(found.runtimes) or 'not installed'}"
    for provider in found.providers:
        yield f"{provider.name:{width}}{'works' if provider.works else f'does not work: {provider.reason}'}"
    yield f"{'CPUs':{width}}{_cpus(found.cpus)}"
    yield f"{'onnxruntime telemetry':{width}}{_telemetry(found.telemetry_off)}"
    yield f"{'Cache':{width}}{found.cache or 'none: there is no home directory'}"


def _telemetry(off: bool) -> str:
    return "off" if off else f"on, because {VARIABLE} asks for it; unset it to send nothing"


def _cpus(cpus: Cpus) -> str:
    quota = "no cgroup quota" if cpus.quota is None else f"a cgroup quota of {cpus.quota:g}"
    return (
        f"{cpus.usable} ({cpus.machine} in the machine, {cpus.affinity} by affinity, {quota}): "
        f"{counted(cpus.workers, 'worker')}, in each a run of at most {counted(cpus.threads, 'thread')}"
    )
