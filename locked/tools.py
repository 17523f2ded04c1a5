"""Install the programs behind ``make audit`` and ``make release`` into an environment of their own, once.

    python locked/tools.py ENVIRONMENT

Ends with 0 when they are there, with UNREACHED_CODE where no index of packages can be reached, and with 1 where they
cannot be installed for another reason. Each of the two is one line.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent / "tools.txt"
#: The exit code where no index can be reached.
UNREACHED_CODE = 3
#: The longest time that pip may take, in seconds.
MOST_SECONDS = 600
#: In what pip prints if it did not reach an index.
UNREACHED = ("ConnectionError", "ConnectTimeoutError", "Max retries", "NameResolution", "timed out", "ProxyError")


def main() -> int:
    """Install what is missing; return the exit code."""
    environment = Path(sys.argv[1])
    stamp = environment / ".installed"
    if stamp.exists() and stamp.stat().st_mtime >= TOOLS.stat().st_mtime:
        return 0
    print(f"installing the programs of locked/tools.txt into {environment}", flush=True)
    pip = [str(environment / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--timeout", "15", "--retries", "1", "--requirement", str(TOOLS)]
    try:
        if not Path(pip[0]).exists():
            subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, capture_output=True, text=True)
        subprocess.run(pip, check=True, capture_output=True, text=True, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"they cannot be installed: pip took more than {MOST_SECONDS} s")
        return UNREACHED_CODE
    except subprocess.CalledProcessError as error:
        if any(word in error.stderr for word in UNREACHED):
            print("they cannot be installed: no index of packages can be reached from here")
            return UNREACHED_CODE
        said = (error.stderr + error.stdout).strip().splitlines()
        print(f"they cannot be installed: {said[-1] if said else 'no reason is given'}")
        return 1
    stamp.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
