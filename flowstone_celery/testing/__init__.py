"""The test kit, for users and for ourselves: the real core on a real database, with a clock that tests move.

1. `plugin.py` brings pytest fixtures: embedded servers for the session, a fresh migrated database for each test, and `fs_test`.
2. `kit.py` is `fs_test`: start, drain, move the clock, crash at named points, look at events, and have the doctor look at the end.
3. `clock.py` moves the database's clock, which is the only one.
"""
