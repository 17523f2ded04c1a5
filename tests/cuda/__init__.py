"""What carries the tests marked ``cuda`` and ``benches.gpu`` to a machine with a GPU, and runs them there.

``parts.py`` runs where there is a package index, ``run.sh`` and ``environment.py`` on the machine with the GPU.
CONTRIBUTING.md says how.
"""
