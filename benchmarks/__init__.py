"""Speed beside a peer's on the same machine: `python -m benchmarks NAME`.

One module for each benchmark. `sides.py` starts a side (a Celery worker and a client process that does what it is asked), `servers.py`
the PostgreSQL and Redis that both share, `rounds.py` takes turns and makes figures of the times, `report.py` prints them.
What a side does stands in `apps/` (ours) and `peers/` (theirs, run by an interpreter of their own).
"""
