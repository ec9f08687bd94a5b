"""A PostgreSQL, on which the written migration must hold too."""

from tests.postgres import postgres_server

__all__ = ["postgres_server"]
