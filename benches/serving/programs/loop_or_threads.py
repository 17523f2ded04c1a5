"""`normfold serve` with another bound below which runs stay on the event loop: BOUND_SECONDS SERVE_ARGUMENTS..."""

import sys

from normfold.cli.main import main
from normfold.serving.catalog import load
from normfold.serving.scheduling.inline import RunTimes

if __name__ == "__main__":
    bound = float(sys.argv.pop(1))
    load.RunTimes = lambda seconds, turn: RunTimes(bound if seconds else 0.0, turn)  # type: ignore[assignment, misc]
    main()
