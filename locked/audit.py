"""Look for known weaknesses of the packages in a list with pip-audit; without a network, say so and end with 0.

python locked/audit.py locked/serving.txt
"""

from __future__ import annotations

import subprocess
import sys

#: The services that know weaknesses, the first first.
SERVICES = ("osv", "pypi")
#: A service that has not answered for every package by then is not waited for.
MOST_SECONDS = 120
#: In what pip-audit prints if it did not reach a service.
UNREACHED = ("ConnectionError", "Could not connect", "Max retries", "NameResolution", "timed out", "HTTPError")


def main() -> int:
    """Print what pip-audit found; return its exit code, or 0 where no service can be reached."""
    for service in SERVICES:
        command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner", "off"]
        command += ["--timeout", "10", "--vulnerability-service", service, "--requirement", sys.argv[1]]
        print(f"asking {service}, at most {MOST_SECONDS} s", flush=True)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{service} did not answer")
            continue
        if done.returncode == 0 or not any(word in done.stderr for word in UNREACHED):
            print(done.stdout + done.stderr, end="")
            return done.returncode
    print("not audited: no service that knows weaknesses can be reached from here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
