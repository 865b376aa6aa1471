"""On the path of a process under test, this makes it one of another time: its code speaks another protocol, or is of another schema.

The child's environment says which; every process that a worker starts, its keeper too, is then of that time.
"""

from __future__ import annotations

import os

if protocol := os.environ.get("OTHERTIME_PROTOCOL"):
    from flowstone_celery.core import model

    model.PROTOCOL = int(protocol)  # type: ignore[misc]

if version := os.environ.get("OTHERTIME_SCHEMA"):
    from flowstone_celery.db import schema

    schema.VERSION = int(version)
