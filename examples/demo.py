"""Export two trained networks, serve them, ask them over gRPC and compare with PyTorch: `make demo`.

Everything runs on this machine, with data of the project. The server is stopped at the end. The model repository stays,
so that you can look at it and serve it again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from normfold import Client, ClientError
from normfold.models import gunpoint, surnames
from normfold.models.surnames.vectorizer import Vectorizer

Array = NDArray[np.float32]

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60
WARM_UP, CALLS = 100, 1000
console = Console(highlight=False, soft_wrap=True)


class StepFailed(Exception):
    """A step of the demo failed; the message says which and how."""


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Print the title, run the block, and print how long it took."""
    console.print(f"\n[bold]{title}[/bold]")
    started = time.perf_counter()
    yield
    console.print(f"[dim]{time.perf_counter() - started:.1f} s[/dim]")


def normfold(*arguments: str) -> list[str]:
    """Print the command as a user would type it, a line for each option, and return it for a subprocess."""
    typed = shlex.join(["normfold", *arguments]).replace(" --", " \\\n      --")
    console.print(f"[cyan]$ {escape(typed)}[/cyan]")
    return [sys.executable, "-m", "normfold", *arguments]


def export(model: str, network: str, weights: Path, takes: str, labels: Path, repository: Path) -> None:
    """Run one `normfold export`, which prints its report itself."""
    command = ["export", network, "--weights", _short(weights), "--input", takes, "--labels", _short(labels)]
    command += ["--repository", _short(repository), "--name", model, "--version", "1", "--overwrite"]
    code = subprocess.run(normfold(*command), cwd=ROOT, check=False).returncode
    if code:
        raise StepFailed(f"exporting {model} ended with exit code {code}; its message is above")


@contextlib.contextmanager
def served(repository: Path) -> Iterator[str]:
    """Run `normfold serve` on a free port and give its address; it is stopped whatever happens in the block."""
    command = ["serve", "--repository", _short(repository), "--listen", "127.0.0.1:0"]
    command += ["--load-model", "surnames", "--load-model", "gunpoint"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(normfold(*command), cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    late = threading.Timer(START_SECONDS, server.kill)
    late.start()
    try:
        assert server.stdout is not None
        address = ""
        with console.status("load the models"):
            for line in server.stdout:
                console.print(escape(line.rstrip()))
                if found := re.match(r"listening on (\S+)", line):
                    address = found[1]
                    break
        late.cancel()
        if not address:
            code = server.wait()
            raise StepFailed(f"the server did not start (exit code {code}, within {START_SECONDS} s)")
        yield address
        server.terminate()
        code = server.wait(timeout=30)
        if code:
            raise StepFailed(f"the server ended with exit code {code} instead of 0")
        console.print(escape(server.stdout.read().rstrip()))
    finally:
        late.cancel()
        if server.poll() is None:
            server.terminate()
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def ask_surnames(client: Client, names: Array) -> Array:
    """Ask for all surnames in one request, print the two best classes of each, return the logits (N, classes)."""
    logits = client.infer("surnames", {"x": names})["output"]
    labels = surnames.load_labels()
    table = Table("surname", "in the data", "answer", "", "second answer", "", box=None, padding=(0, 2, 0, 0))
    for sample, row in zip(surnames.load_samples(), _probabilities(logits), strict=True):
        first, second = np.argsort(row)[::-1][:2]
        colour = "green" if labels[first] == sample.nationality else "yellow"
        answer = (f"[{colour}]{labels[first]}[/{colour}]", f"{row[first]:.0%}", labels[second], f"{row[second]:.0%}")
        table.add_row(sample.surname, sample.nationality, *answer)
    console.print(table)
    return logits


def ask_gunpoint(client: Client, series: Array) -> Array:
    """Ask for the motion of all series in one request, print each answer, return the logits (N, classes)."""
    logits = client.infer("gunpoint", {"x": series})["output"]
    labels = gunpoint.load_labels()
    table = Table("series", "in the data", "answer", "", box=None, padding=(0, 2, 0, 0))
    for sample, row in zip(gunpoint.load_samples(), _probabilities(logits), strict=True):
        best = int(row.argmax())
        colour = "green" if labels[best] == sample.motion else "yellow"
        table.add_row(_sketch(sample.series), sample.motion, f"[{colour}]{labels[best]}[/{colour}]", f"{row[best]:.0%}")
    console.print(table)
    return logits


def compare(model: str, factory: str, weights: Path, x: Array, answer: Array) -> None:
    """Compare the served logits with PyTorch's in float64; raise StepFailed if float32 does not explain the difference.

    The bound is that of the export: three times the error of PyTorch's own float32 run, and four units in the last
    place, all relative to the largest logit.
    """
    import torch

    from normfold.export.proof.rounding import FACTOR, FLOOR
    from normfold.export.sources.source import load_source
    from normfold.export.sources.weights import load_into, read_checkpoint

    network = load_source(factory, {}).network
    load_into(network, read_checkpoint(weights, network.state_dict()), weights)
    network.eval()
    with torch.inference_mode():
        single = network(torch.from_numpy(x)).numpy()
        exact = network.double()(torch.from_numpy(x).double()).numpy()
    scale = np.abs(exact).max()
    error, own = np.abs(answer - exact).max() / scale, np.abs(single - exact).max() / scale
    same = int((answer.argmax(1) == exact.argmax(1)).sum())
    console.print(
        f"{model:9} same class {same} of {len(x)}; largest error {error:.1e} of the largest logit "
        f"(PyTorch's own float32: {own:.1e})"
    )
    if same != len(x) or not error <= FACTOR * own + FLOOR:
        raise StepFailed(f"the served {model} does not answer as PyTorch does")


def time_calls(client: Client, model: str, x: Array) -> None:
    """Time calls with one input, one after the other, and print the percentiles."""
    seconds = []
    for count in track(range(WARM_UP + CALLS), model, console=console, transient=True, disable=not console.is_terminal):
        started = time.perf_counter()
        client.infer(model, {"x": x})
        if count >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99], method="inverted_cdf")
    console.print(f"{model:9} p50 {p50:.2f} ms   p99 {p99:.2f} ms   {CALLS / sum(seconds):,.0f} calls a second")


def _short(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _probabilities(logits: Array) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _sketch(series: Array) -> str:
    """Return a series (1, 1, 150) as thirty bars, each the mean of five frames."""
    means = series.reshape(-1, 5).mean(axis=1)
    heights = (means - means.min()) / (means.max() - means.min()) * 7
    return "".join("▁▂▃▄▅▆▇█"[round(float(h))] for h in heights)


def run(repository: Path) -> None:
    """Run every step."""
    vectorizer = Vectorizer.load()
    names = vectorizer([sample.surname for sample in surnames.load_samples()])
    series = np.concatenate([sample.series for sample in gunpoint.load_samples()])
    started = time.perf_counter()
    with step("1. Export the surname network: convolution, ReLU, then BatchNorm, as in the book's Example 4.22"):
        takes = f"x=FP32[N,{len(vectorizer.tokens)},L]"
        export("surnames", surnames.FACTORY, surnames.CHECKPOINT, takes, surnames.LABELS, repository)
    with step("2. Export an InceptionTime: BatchNorm behind a concat of padded convolutions, and residuals"):
        export("gunpoint", gunpoint.FACTORY, gunpoint.CHECKPOINT, "x=FP32[N,1,L]", gunpoint.LABELS, repository)
    with contextlib.ExitStack() as running:
        with step("3. Serve both over gRPC, in a process without PyTorch"):
            address = running.enter_context(served(repository))
        client = running.enter_context(Client(address))
        with step(f"4. Ask for the nationality of {len(names)} surnames that the network was not trained on"):
            surname_logits = ask_surnames(client, names)
        with step(f"5. Ask what {len(series)} hands are doing: drawing a gun, or pointing"):
            motion_logits = ask_gunpoint(client, series)
        with step("6. Compare with PyTorch in float64"), console.status("import PyTorch"):
            compare("surnames", surnames.FACTORY, surnames.CHECKPOINT, names, surname_logits)
            compare("gunpoint", gunpoint.FACTORY, gunpoint.CHECKPOINT, series, motion_logits)
        with step(f"7. Time {CALLS:,} calls of each, one at a time, after {WARM_UP} to warm up"):
            time_calls(client, "surnames", names[:1])
            time_calls(client, "gunpoint", series[:1])
        with step("8. Stop the server"):
            running.close()
    seconds = time.perf_counter() - started
    console.print(f"\n[bold green]All done in {seconds:.0f} s.[/bold green] The models are in {_short(repository)};")
    console.print(f"serve them again with: normfold serve --repository {shlex.quote(_short(repository))}")


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # leaves all blocks, so that the server is stopped


def main() -> int:
    """Return the exit code: 0 done, 1 a step failed, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=ROOT / "repository", help="default: ./repository")
    repository = parser.parse_args().repository.resolve()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        run(repository)
    except StepFailed as error:
        console.print(f"[bold red]The demo failed:[/bold red] {escape(str(error))}")
        return 1
    except ClientError as error:
        console.print(f"[bold red]The demo failed:[/bold red] the server did not answer: {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped, and the server with it")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
