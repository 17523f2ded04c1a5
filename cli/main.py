"""The ``normfold`` command group; each subcommand's module is imported only when that subcommand is asked for."""

from __future__ import annotations

import difflib
import os
import re
from importlib import import_module
from pathlib import Path

import click

from normfold import interrupts
from normfold.cli import environment
from normfold.cli.terminal import message

#: Subcommand -> (module that has a click command of that name, its line in ``normfold --help``). The lines are written
#: here so that ``normfold --help`` imports none of the modules.
COMMANDS: dict[str, tuple[str, str]] = {
    "export": ("normfold.cli.export", "Fold a trained network, export it to ONNX, prove it, publish it."),
    "fold": ("normfold.cli.fold", "Fold an ONNX file that someone else exported."),
    "verify": ("normfold.cli.verify", "Compare any two of a module, an ONNX file and a served model."),
    "serve": ("normfold.cli.serve", "Serve a model repository over gRPC."),
    "sign": ("normfold.cli.sign", "Write manifests of model versions, and sign them."),
    "token": ("normfold.cli.token", "Make a token for a server with --tokens."),
    "models": ("normfold.cli.models", "List models, versions, their states and counters."),
    "load": ("normfold.cli.control", "Load a model, or load it again, on a running server."),
    "unload": ("normfold.cli.control", "Take a model out of service on a running server."),
    "use": ("normfold.cli.use", "Put one version of a model in service: roll forward, roll back."),
    "healthcheck": ("normfold.cli.healthcheck", "Say by the exit code whether a server is ready."),
    "infer": ("normfold.cli.infer", "Ask a served model for an answer."),
    "bench": ("normfold.cli.bench", "Measure servers under load: latency, throughput, CPU."),
    "doctor": ("normfold.cli.doctor", "Say what is installed, what really loads, and whether a server can start."),
}


#: The packages whose versions matter in a report of a fault.
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "onnx", "grpcio", "protobuf", "numpy", "uvloop")


#: click's words for a number, and ours: "is not a valid integer range" would be about the range.
_NUMBERS = {"integer": "whole number", "float": "number"}
_NO_NUMBER = re.compile(r"is not a valid (integer|float)(?: range)?\.")
_NO_SWITCH = re.compile(r"is not a valid boolean\.(?: Recognized values: .*)?")


def _command(name: str) -> click.Command:
    command = getattr(import_module(COMMANDS[name][0]), name)
    assert isinstance(command, click.Command)
    return command


class LazyGroup(click.Group):
    """A command group that knows its commands' names and help lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the subcommands in the order a person uses them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one subcommand, or None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = _command(cmd_name)
        for variable, option in environment.variables(cmd_name, command).items():
            option.envvar = variable  # click would take the name in the code
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve the subcommand; for a mistyped name, suggest the nearest one."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(COMMANDS)}"
            ctx.fail(f"no command '{name}'; {hint}")
        found, command, rest = super().resolve_command(ctx, args)
        if found is not None and command is not None:
            from normfold.cli.config_file import read

            ctx.default_map = {found: read(ctx.params["config"], found, COMMANDS, _command)}
            if not (ctx.resilient_parsing or {*ctx.help_option_names} & {*rest}):
                environment.check(found, command, os.environ)
        interrupts.raise_again()
        interrupts.hang_up(serve=found == "serve")
        return found, command, rest

    def invoke(self, ctx: click.Context) -> object:
        """Run the subcommand; an error about a value says where the value came from, and errors are printable."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            if isinstance(error, click.NoSuchOption) and error.option_name == "--config" and error.ctx is not None:
                name = error.ctx.info_name
                why = f"normfold {name} has no --config; the file of options is named before the command"
                raise click.UsageError(f"{why}: normfold --config FILE {name} …", error.ctx) from None
            if isinstance(error, click.BadParameter):
                environment.say_where(error)
            vars(error).update(message=message(_clearer(error)))  # click declares it final, and prints it
            raise
        except KeyboardInterrupt as stop:  # click would end with 1, which says something else
            click.echo("; ".join(["stopped", *getattr(stop, "__notes__", ())]), err=True)
            ctx.exit(interrupts.INTERRUPTED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of subcommands from the help lines kept here."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _clearer(error: click.ClickException) -> str:
    """The message of ``error``, in other words where those of click do not say what to write."""
    words = _NO_NUMBER.sub(lambda found: f"is not a {_NUMBERS[found[1]]}.", error.message)
    return _NO_SWITCH.sub("is not true or false.", words)


def _version(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    """Print the versions that matter in a report of a fault."""
    if not asked:
        return
    import platform
    from importlib.metadata import PackageNotFoundError, version

    click.echo(f"normfold {version('normfold')}")
    for package in PACKAGES:
        try:
            click.echo(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    click.echo(f"Python {platform.python_version()}, {platform.platform()}, {platform.machine()}")
    context.exit()


@click.command(
    cls=LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "auto_envvar_prefix": "NORMFOLD",
    },
    epilog="`normfold COMMAND --help` shows each command's options with examples.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    allow_from_autoenv=False,  # an image may have its version in NORMFOLD_VERSION
    callback=_version,
    help="Print versions.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file of options for the commands. Default: normfold.toml here, if there is one.",
)
def main(config: Path | None) -> None:
    """Fold every BatchNorm of a trained network, export it to ONNX with a proof, and serve it over gRPC.

    \b
    normfold export mynets.py:SurnameCNN --weights surnames.safetensors \\
        --input 'x=FP32[N,77,L]' --repository repository --name surnames
    normfold serve --repository repository
    normfold infer surnames --input x=@one.npy
    """
