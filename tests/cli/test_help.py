"""Help: every option, at once (no torch), with examples that stand as they were written."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from dd_bench.cli.main import commands
from tests.cli.conftest import Command

HEAVY = ("torch", "numpy", "pandas", "pydantic", "sklearn", "kornia", "wandb", "matplotlib", "rich", "synth", "eval")


def tree(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from tree(command, (*path, name))
        else:
            yield (*path, name), command


PAGES = dict(tree(commands))


def test_all_commands_are_here() -> None:
    assert [" ".join(path) for path in PAGES] == [
        "", "synth", "eval", "leaderboard", "list", "list methods", "list datasets", "list protocols", "list models",
        "list sets", "list runs", "show", "export", "import", "adopt", "clean", "doctor",
    ]  # fmt: skip


@pytest.mark.parametrize("path", PAGES, ids=" ".join)
def test_page(ddbench: Command, path: tuple[str, ...]) -> None:
    answer = ddbench(*path, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"Usage: {' '.join(['ddbench', *path])}")
    assert "\b" not in answer.out
    assert "\\b" not in answer.out
    assert "`" not in answer.out
    assert ddbench(*path, "-h").out == answer.out
    command = PAGES[path]
    assert command.help
    for parameter in command.params:
        for name in (
            parameter.opts if isinstance(parameter, click.Option) else [parameter.make_metavar(click.Context(command))]
        ):
            assert name in answer.out
        if isinstance(parameter, click.Option):
            assert parameter.help
            assert parameter.help.split()[0] in answer.out
    if isinstance(command, click.Group):
        for name, part in command.commands.items():
            assert re.search(rf"^  {name} +[A-Z]", answer.out, re.MULTILINE)
            line = next(line for line in answer.out.splitlines() if line.startswith(f"  {name} "))
            assert not line.endswith("..."), f"short_help of {part.name} does not fit"


@pytest.mark.parametrize("path", [path for path in PAGES if PAGES[path].epilog], ids=" ".join)
def test_examples_stand_as_written_and_would_be_understood(ddbench: Command, path: tuple[str, ...]) -> None:
    page = ddbench(*path, "--help").out
    _, _, examples = page.partition("\n  Examples:\n")
    lines = [line.strip() for line in examples.splitlines()]
    assert lines
    for line in lines:
        program, name, *arguments = re.split(r" {2,}", line)[0].split()
        assert program == "ddbench"
        commands.commands[name].make_context(name, arguments)  # raises if an option does not exist


def test_help_is_quick() -> None:
    """Nothing that takes a second to import is imported for a page of help, or to refuse a misspelt option."""
    program = (
        "import sys; from dd_bench.cli import main\n"
        f"for path in {[*PAGES, ('synth', '--metod')]!r}:\n"
        "    try: main([*path, '--help'])\n"
        "    except SystemExit: pass\n"
        f"print(sorted(set(sys.modules) & {set(HEAVY)!r}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_version(ddbench: Command) -> None:
    assert re.fullmatch(r"ddbench, version \d+\.\d+\.\d+\n", ddbench("--version").out)
