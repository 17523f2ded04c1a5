"""Memory, files and threads of a server over many reloads and mixed lengths; ``python -m tests.soak``: long form."""
