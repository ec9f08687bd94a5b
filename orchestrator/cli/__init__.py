"""The command line. Each command is a module of `orchestrator.cli.commands`, imported only when it is called."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import sys
from typing import Any, NoReturn

import click

from kt_study import __version__
from kt_study.errors import KtStudyError
from kt_study.failures import unusable
from kt_study.nearest import nearest
from kt_study.printable import OneLine, printable

COMMANDS = {
    "init": "Write a commented study.toml.",
    "plan": "Sample the pairs and fill the job table.",
    "launch": "Start workers, here or on Slurm.",
    "stop": "Stop every worker; their jobs go back to ready.",
    "status": "Jobs by state, rate, ETA, running jobs, failures by cause.",
    "collect": "Write the results as parquet.",
    "report": "Write figures, tables and an HTML page from the parquet files.",
    "recommend": "Rank teachers for a student, by measured or predicted delta_transf.",
    "export": "Export a transferred student for timm.",
    "query": "Query the results database, with a named query or a SELECT.",
    "retry": "Put failed jobs back to ready.",
    "cancel": "Cancel jobs that are not done.",
    "pause": "Pause jobs; running ones checkpoint and stop.",
    "resume": "Resume paused jobs.",
    "worker": "Run one worker in this process.",
    "data": "Prepare data for the fast loader.",
    "cache": "List, verify or clean up the logits cache.",
    "db": "Run a PostgreSQL server without root.",
    "doctor": "Check everything that a study needs.",
}


_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""A full disk, an exceeded quota, a broken disk."""


class LazyGroup(click.Group):
    """Lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the order in which a study uses them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module and take its command of that name."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"orchestrator.cli.commands.{name}")
        command: click.Command = module.command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click, with the nearest command in the error."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = nearest(args[0], COMMANDS) or f"; there are {', '.join(COMMANDS)}"
            ctx.fail(f"no command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The commands and their one-line help, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kt-study")
def kt_study_command() -> None:
    """Measure what pretrained image classifiers know that others do not, and transfer that knowledge between them.

    \b
    Examples:
      kt-study init                    # a study file for the embedded digits zoo
      kt-study plan                    # sample the pairs, fill the job table
      kt-study launch --partition gpu  # workers on Slurm; without --partition, on this machine
      kt-study status --watch          # follow the progress
      kt-study collect                 # parquet; `report` makes the figures

    \b
    Completion, for ~/.bashrc (zsh_source for ~/.zshrc):
      eval "$(_KT_STUDY_COMPLETE=bash_source kt-study)"
    """


def main() -> None:
    """Run the command line: exit code 0 done, 1 some jobs failed, 2 wrong usage or input, 3 environment not usable."""
    if logging.lastResort:  # for warnings of modules that workers use too
        logging.lastResort.setFormatter(OneLine("%(message)s"))
    colour = False if os.environ.get("NO_COLOR") else None  # None: on a terminal only
    try:
        status = kt_study_command.main(prog_name="kt-study", standalone_mode=False, color=colour)
    except KtStudyError as error:
        click.echo(f"kt-study: {printable(str(error))}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("kt-study: stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except (OSError, RuntimeError, UnicodeEncodeError) as error:
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            _give_up_writing(error)
        if not (line := unusable(error)):
            raise
        click.echo(f"kt-study: {printable(line)}", err=True)
        sys.exit(3)
    sys.exit(status if isinstance(status, int) else 0)


def _give_up_writing(error: OSError) -> NoReturn:
    """Print one line, if possible, and exit with 3. Python would try standard output again at exit."""
    with contextlib.suppress(OSError):
        click.echo(
            f"kt-study: {printable(str(error.filename or 'the output'))} cannot be written: {error.strerror}", err=True
        )
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(3)
