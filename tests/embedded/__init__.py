"""The embedded PostgreSQL and Redis, with real processes."""
