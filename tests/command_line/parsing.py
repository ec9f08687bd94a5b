"""Whether a line that a user may type is one: parsed by click as far as possible without running anything."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click

from orchestrator.cli import kt_study_command


def parse(line: str) -> None:
    """Parse one `kt-study` line, comments allowed. Raises click.ClickException for what click would refuse."""
    name, *arguments = shlex.split(line, comments=True)
    assert name == "kt-study", line
    _parse(kt_study_command, name, arguments, None)


def _parse(command: click.Command, name: str, arguments: list[str], parent: click.Context | None) -> None:
    try:
        context = command.make_context(name, list(arguments), parent=parent)
    except click.exceptions.Exit:  # --help and --version are done with while parsing
        return
    with context:
        if isinstance(command, click.Group):
            rest: list[str] = [*context._protected_args, *context.args]
            inner, found, left = command.resolve_command(context, rest)
            assert inner is not None
            assert found is not None
            _parse(found, inner, left, context)


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and group, by what a user types."""
    yield from _walk("kt-study", kt_study_command)


def _walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _walk(f"{path} {name}", inner)


def examples(command: click.Command) -> list[str]:
    """The lines below "Examples:" in a command's help text."""
    _, found, rest = (command.help or "").partition("Examples:\n")
    return [line.strip() for line in rest.split("\n\n")[0].splitlines()] if found else []
