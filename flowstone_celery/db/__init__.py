"""The database room: how statements reach Postgres.

1. `schema.py` is the one page of tables; the migrations build the same.
2. `statements.py` reads the named statements of a room's .sql files, with the arrows in their headers.
3. `database.py` keeps one engine for each process (never over a fork), opens transactions, and runs what waits for a commit.
4. `migrate.py` brings a database to this code's schema and tells when the two do not fit.
"""
