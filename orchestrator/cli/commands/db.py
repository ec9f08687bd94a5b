"""kt-study db"""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec

from orchestrator.cluster import postgres_server

_FOLDER = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    default=lambda: Path.home() / ".local" / "share" / "kt-study" / "postgresql",
    help="Data directory, on a local disk of this machine.",
)


@click.group()
def command() -> None:
    """Run a PostgreSQL server without root, for studies on more than one node.

    \b
    Examples:
      kt-study db start --host $(hostname)
      export KT_STUDY_DB=$(kt-study db url)
    """


@command.command()
@_FOLDER
@click.option(
    "--host",
    help="Address to listen on; this node's name for workers on other nodes (default: as last time, first 127.0.0.1).",
)
@click.option("--port", type=int, default=0, help="TCP port (default: as last time, first a free port).")
def start(folder: Path, host: str | None, port: int) -> None:
    """Start the server and print its URL. The first start creates it.

    \b
    Examples:
      kt-study db start                     # for workers on this machine
      kt-study db start --host $(hostname)  # for workers on other nodes
    """
    click.echo(postgres_server.start(folder, host=host, port=port))


@command.command()
@_FOLDER
def stop(folder: Path) -> None:
    """Stop the server; its data is kept.

    \b
    Examples:
      kt-study db stop
    """
    click.echo("stopped" if postgres_server.stop(folder) else "the server was not running")


@command.command()
@_FOLDER
@click.pass_context
def status(ctx: click.Context, folder: Path) -> None:
    """Show whether the server runs and responds; exit code 1 if not.

    \b
    Examples:
      kt-study db status
    """
    found = postgres_server.status(folder)
    click.echo(json.dumps(msgspec.to_builtins(found)))
    ctx.exit(0 if found.accepting else 1)


@command.command()
@_FOLDER
def url(folder: Path) -> None:
    """Print the server's URL, for --db or KT_STUDY_DB. It names the password file and never contains the password.

    \b
    Examples:
      export KT_STUDY_DB=$(kt-study db url)
    """
    click.echo(postgres_server.url(folder))
