"""Build what is uploaded to an index, and check it: python locked/release.py [--draft]

The source distribution, a wheel made from it, and the list of the server's parts go into dist/. The wheel is installed
into an environment of its own, whose ``normfold --version`` must print the version of pyproject.toml, which must be the
newest version of CHANGELOG.md; --draft leaves the last one out. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"


def main() -> int:
    """Carry out each step and print it; return 1 at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draft", action="store_true", help="the changelog need not have the version yet")
    draft = parser.parse_args().draft
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    newest = newest_version((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    if newest != version and not draft:
        print(f"CHANGELOG.md has {newest or 'no version'} as its newest, pyproject.toml has {version}: give what is")
        print(f"under [Unreleased] the heading ## [{version}] - DATE, or build a draft: make release DRAFT=1")
        return 1
    shutil.rmtree(DIST, ignore_errors=True)
    try:
        build = [sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT)]
        step("source distribution, and the wheel from it", *build)
        files = sorted(map(str, DIST.iterdir()))
        step("what an index wants of them", sys.executable, "-m", "twine", "check", "--strict", *files)
        (wheel,) = DIST.glob("*.whl")
        with tempfile.TemporaryDirectory() as folder:
            step("an environment of its own", sys.executable, "-m", "venv", folder)
            pip = [f"{folder}/bin/pip", "install", "--quiet", "--disable-pip-version-check"]
            step("the wheel in it", *pip, "--constraint", str(ROOT / "constraints.txt"), str(wheel))
            printed = step("normfold --version", f"{folder}/bin/normfold", "--version")
    except subprocess.CalledProcessError as error:
        print(error.stdout + error.stderr, end="")
        print(f"not released: {error.cmd[0]} ended with {error.returncode}")
        return 1
    if not re.match(rf"normfold,? (version )?{re.escape(version)}\b", printed):
        print(f"not released: the wheel is {printed.splitlines()[0]!r}, pyproject.toml says {version}")
        return 1
    print(f"ready in {DIST}: " + ", ".join(Path(file).name for file in files))
    print(f"then: git tag v{version}; {sys.executable} -m twine upload dist/*")
    return 0


def newest_version(changelog: str) -> str:
    """Return the first version that has a heading; "" if none has.

    >>> newest_version("## [Unreleased]\\n## [1.2.0] - 2026-01-01\\n## [1.1.0]")
    '1.2.0'
    """
    found = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    return found[1] if found else ""


def step(what: str, *command: str) -> str:
    """Run a command and return what it prints. Raises CalledProcessError."""
    print(f"{what} …", flush=True)
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


if __name__ == "__main__":
    sys.exit(main())
