"""Build what deploy/Dockerfile builds, in folders and without Docker, and try the image; run by ``make image``.

    python tests/deploy/image.py build/image

Needs root, Debian, debootstrap, unshare and nsenter. Each stage is a folder: FROM copies Debian with its Python, RUN is
carried out with chroot, COPY copies as .dockerignore says. The image then runs as a container would: in namespaces of
its own, on a read-only file system, as the user of the Dockerfile, with no network but its own loopback.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from onnx import parser

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy/Dockerfile"
#: Instead of the image python:3.13-slim: Debian without anything but its Python, which is 3.11.
DEBIAN = ("--variant=minbase", "--include=ca-certificates,python3,python3-venv", "bookworm")
#: Settings of pip that belong to the network of this machine.
OUTSIDE = {"PIP_INDEX_URL", "PIP_CERT", "PIP_DEFAULT_TIMEOUT"}
#: The longest time for the server to be ready, and to end, in seconds.
SECONDS = 120
#: Names of files that no image of a server needs: compilers, and what only exports use.
COMPILERS = ("gcc*", "cc", "g++*", "c++*", "clang*", "ld", "as", "make")
PACKAGES = {"torch", "onnx", "onnxscript", "onnx_ir", "pip", "pytest"}
MODEL = """<ir_version: 9, opset_import: ["": 18]>
m (float[N,4] x) => (float[N,4] y) { y = Neg (x) }"""


@dataclass
class Stage:
    """One stage: its folder, and what its instructions have set."""

    root: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    )
    folder: str = "/"
    user: int = 0
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction and what follows it, without comments, lines joined."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def build(text: str, base: Path, folder: Path) -> Stage:
    """The last stage of the Dockerfile ``text``, built below ``folder`` from the tree ``base``."""
    stages: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    stage = Stage(folder)
    for word, rest in instructions(text):
        print(f"{word} {rest}"[:110], flush=True)
        if word == "FROM":
            name = rest.partition(" AS ")[2] or "image"
            stage = stages[name] = Stage(folder / name)
            shutil.rmtree(stage.root, ignore_errors=True)
            subprocess.run(["cp", "-a", base, stage.root], check=True)
        elif word == "ARG":
            arguments |= dict([rest.split("=", 1)])
        elif word == "ENV":
            given = dict(pair.split("=", 1) for pair in shlex.split(rest))
            stage.environment |= {
                name: value.replace("$PATH", stage.environment["PATH"]) for name, value in given.items()
            }
        elif word == "WORKDIR":
            stage.folder = rest
            inside(stage, rest).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            stage.user = int(rest)
        elif word == "COPY":
            copy(stage, rest, stages)
        elif word == "RUN":
            carry_out(stage, rest, arguments)
        elif word == "HEALTHCHECK":
            stage.health = json.loads(rest.partition("CMD ")[2])
        elif word == "ENTRYPOINT":
            stage.entrypoint = json.loads(rest)
        elif word == "CMD":
            stage.command = json.loads(rest)
        elif word not in ("EXPOSE", "STOPSIGNAL"):
            raise SystemExit(f"{DOCKERFILE}: {word} is not known to {__file__}")
    return stage


def inside(stage: Stage, path: str) -> Path:
    """Where the absolute ``path`` of the stage is here."""
    return stage.root / path.lstrip("/")


def copy(stage: Stage, rest: str, stages: dict[str, Stage]) -> None:
    """COPY from another stage, or of the whole project as .dockerignore says."""
    words = rest.split()
    if words[0].startswith("--from="):
        source, target = inside(stages[words[0].removeprefix("--from=")], words[1]), inside(stage, words[2])
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", source, target], check=True)
        return
    if words != [".", "."]:
        raise SystemExit(f"COPY {rest} is not known to {__file__}")
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert lines[0] == "*", "everything is left out but what is named"
    left_out = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    ignore = shutil.ignore_patterns(*left_out)
    for name in (line[1:] for line in lines if line.startswith("!")):
        source, target = ROOT / name, inside(stage, stage.folder) / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=ignore)
        elif not any(fnmatch.fnmatch(name, pattern) for pattern in left_out):
            shutil.copy2(source, target)


def carry_out(stage: Stage, command: str, arguments: dict[str, str]) -> None:
    """RUN ``command`` in the stage, with this machine's way to the network: its resolver, proxy and certificates."""
    shutil.copy2("/etc/resolv.conf", stage.root / "etc/resolv.conf")
    outside = {name: value for name, value in os.environ.items() if name in OUTSIDE or "proxy" in name.lower()}
    script = [
        f"mount -t proc proc {stage.root}/proc",
        f"mount --rbind /dev {stage.root}/dev",
        f"mount --bind /etc/ssl/certs {stage.root}/etc/ssl/certs",
        f"exec chroot {stage.root} {shlex.join(['/bin/sh', '-c', f'cd {stage.folder} && {command}'])}",
    ]
    unshare = ["unshare", "--mount", "--pid", "--fork", "sh", "-ec", "\n".join(script)]
    subprocess.run(unshare, env=outside | arguments | stage.environment, check=True)


def installed(stage: Stage) -> dict[str, str]:
    """The versions of the packages of the server, by name."""
    found = {}
    for folder in inside(stage, "/opt/normfold").glob("lib/python3*/site-packages/*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        found[name.lower().replace("-", "_").replace(".", "_")] = version
    return found


def check_files(stage: Stage) -> None:
    """Hold the files of the image to what the manual says of it."""
    locked = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "locked/serving.txt").read_text(encoding="utf-8"), re.MULTILINE)
    wanted = {name.lower().replace("-", "_").replace(".", "_"): version for name, version in locked}
    found = installed(stage)
    ours = found.pop("normfold")
    assert found == wanted, (
        f"other packages than those of locked/serving.txt: {set(found.items()) ^ set(wanted.items())}"
    )
    assert not PACKAGES & set(found)
    parts = json.loads(inside(stage, "/opt/normfold/sbom.json").read_text(encoding="utf-8"))
    assert parts["bomFormat"] == "CycloneDX"
    listed = {part["name"].lower().replace("-", "_").replace(".", "_"): part["version"] for part in parts["components"]}
    assert listed == found | {"normfold": ours}, f"the list of parts differs: {set(listed) ^ {*found, 'normfold'}}"
    assert stage.user not in (0, None)
    size, writable, compilers = 0, [], []
    for folder, _, names in os.walk(stage.root):
        for name in names:
            path = Path(folder, name)
            about = path.lstat()
            size += about.st_size
            if stat.S_ISREG(about.st_mode) and (about.st_mode & stat.S_IWOTH or about.st_uid == stage.user):
                writable.append(path)
            if os.access(path, os.X_OK) and any(fnmatch.fnmatch(name, pattern) for pattern in COMPILERS):
                compilers.append(path)
    assert not writable, f"the user may write {writable}"
    assert not compilers, f"compilers: {compilers}"
    assert not inside(stage, "/source").exists()
    assert not inside(stage, "/tools").exists()
    compiled = len(list(inside(stage, "/opt/normfold").rglob("serving/__pycache__/server.*.pyc")))
    assert compiled == 1, "no bytecode, which nothing can write later"
    opt = sum(path.lstat().st_size for path in inside(stage, "/opt/normfold").rglob("*"))
    print(f"files: {len(found) + 1} packages, those of locked/serving.txt; sbom.json lists them; /opt/normfold has")
    print(
        f"  {opt / 1e6:.0f} MB of {size / 1e6:.0f} MB; no compiler, no torch, nothing that user {stage.user} may write"
    )


def started(stage: Stage, models: Path) -> subprocess.Popen[bytes]:
    """The image's entry point as a container would run it; its namespaces have the number of the process inside."""
    root = stage.root
    mounts = [
        f"mount --bind {root} {root}",
        f"mount --bind {models} {root}/models",
        f"mount -o remount,bind,ro {root}/models",
        f"mount -t tmpfs tmpfs {root}/tmp",
        f"mount -t proc proc {root}/proc",
        f"mount --bind /dev/null {root}/dev/null",
        f"mount --bind /dev/urandom {root}/dev/urandom",
        f"mount -o remount,bind,ro {root}",
        shlex.join([sys.executable, "-c", LOOPBACK]),
        f"exec {shlex.join(as_user(stage, [*stage.entrypoint, *stage.command]))}",
    ]
    inside(stage, "/models").mkdir(exist_ok=True)
    unshare = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
    return subprocess.Popen([*unshare, "sh", "-ec", "\n".join(mounts)], env=stage.environment)


#: Turns on the loopback interface of a new network: SIOCSIFFLAGS with IFF_UP.
LOOPBACK = (
    "import fcntl, socket, struct; "
    "fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, struct.pack('16sh', b'lo', 1))"
)


def as_user(stage: Stage, command: list[str]) -> list[str]:
    """``command`` in the stage's folder as its user, without rights."""
    return ["chroot", f"--userspec={stage.user}:{stage.user}", str(stage.root), *command]


class Running:
    """The container."""

    def __init__(self, stage: Stage, models: Path) -> None:
        self.stage, self.process = stage, started(stage, models)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while not (found := children.read_text().split()):
            time.sleep(0.05)
        self.first = found[0]

    def run(self, *command: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
        """``command`` in the container, as docker exec would run it."""
        number = self.stage.user if user is None else user
        enter = [
            "nsenter",
            f"--target={self.first}",
            "--mount",
            "--pid",
            "--net",
            "chroot",
            f"--userspec={number}:{number}",
        ]
        words = [*enter, str(self.stage.root), *command]
        return subprocess.run(
            words, env=self.stage.environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )


def check_container(stage: Stage, models: Path) -> None:
    """Start the container, ask its health check, try to write, ask the model, stop it."""
    running = Running(stage, models)
    try:
        until = time.monotonic() + SECONDS
        codes = [running.run(*stage.health).returncode]
        while codes[-1] and time.monotonic() < until and running.process.poll() is None:
            time.sleep(0.5)
            codes.append(running.run(*stage.health).returncode)
        assert codes[-1] == 0, f"the health check ended with {codes}"
        listed = running.run("normfold", "models", "--json")
        assert [row["model"] for row in json.loads(listed.stdout)] == ["m"], listed
        answer = running.run("normfold", "infer", "m", "--input", "x=[[1, 2, 3, 4]]")
        assert "-4" in answer.stdout, answer
        identity = Path(f"/proc/{running.first}/status").read_text()
        assert re.search(rf"^Uid:\t{stage.user}\t{stage.user}\t", identity, re.MULTILINE), identity
        assert re.search(r"^CapEff:\t0+$", identity, re.MULTILINE), "the server has rights"
        for path in ("/x", "/opt/normfold/x", "/models/x", "/var/x"):
            for user in (stage.user, 0):
                assert running.run("touch", path, user=user).returncode, f"user {user} can write {path}"
        os.kill(int(running.first), signal.SIGTERM)
        assert running.process.wait(SECONDS) == 0, "SIGTERM"
        print(f"container: ready after {len(codes)} health checks; user {stage.user} has no rights, writes nowhere;")
        print("  SIGTERM ends it with exit code 0")
    finally:
        running.process.kill()
        running.process.wait()


def main() -> None:
    """Build and check; the folder is the argument."""
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        sys.exit("make image needs root and debootstrap (apt-get install debootstrap)")
    folder = Path(sys.argv[1]).resolve()
    base = folder / "debian"
    if not (base / "usr/local/bin/python").is_symlink():
        shutil.rmtree(base, ignore_errors=True)
        subprocess.run(["debootstrap", *DEBIAN, base], check=True, stdout=subprocess.DEVNULL)
        (base / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    stage = build(DOCKERFILE.read_text(encoding="utf-8"), base, folder)
    check_files(stage)
    models = folder / "models"
    (models / "m/1").mkdir(parents=True, exist_ok=True)
    (models / "m/1/model.onnx").write_bytes(parser.parse_model(MODEL).SerializeToString())
    check_container(stage, models)


if __name__ == "__main__":
    main()
