"""``python -m normfold`` is the ``normfold`` command."""

from normfold.cli import main

main()
