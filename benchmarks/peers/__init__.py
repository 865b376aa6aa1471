"""The peers' sides. Each module needs nothing but its peer, and runs under `.bench-venv`."""
