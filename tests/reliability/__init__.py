"""What becomes of the requests of good clients while something breaks; ``python -m tests.reliability``: long form."""
