"""The ``normfold`` command, which is ``python -m normfold``, too."""

from normfold import interrupts


def run() -> None:
    """Run the command."""
    interrupts.end_at_once()
    interrupts.wait_for_children()
    from normfold.cli import main
    from normfold.cli.output import printing

    try:
        printing(main)
    finally:
        interrupts.end_silently()


if __name__ == "__main__":
    run()
