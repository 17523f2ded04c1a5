"""Print the lowest version of each package that pyproject.toml allows, as constraints for pip.

    python locked/lowest.py

``make test-lowest`` installs these and runs tests with them.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What else than the base is installed; the packages of [dev] are not what a user needs.
EXTRAS = ("cpu", "export", "otel", "png", "signing")


def lowest() -> list[str]:
    """Return name==version for each package of the base and of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    bounds = [re.match(r"([\w.-]+)>=([\w.]+)", one) for one in wanted]
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]


if __name__ == "__main__":
    print("\n".join(lowest()))
