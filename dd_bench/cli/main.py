"""The ``ddbench`` command: its subcommands, and how faults are told."""

import errno
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from dd_bench import __version__, interruption
from dd_bench.cli import options
from dd_bench.cli.boards import leaderboard
from dd_bench.cli.catalogue import list_, show
from dd_bench.cli.clean import clean
from dd_bench.cli.doctor import doctor
from dd_bench.cli.evaluate import evaluate
from dd_bench.cli.exchange import adopt, export, import_
from dd_bench.cli.synthesize import synthesize
from dd_bench.errors import DDBenchError, InterruptedRunError, one_line

# What the disk refuses and the user can mend; any other OSError is a bug until shown otherwise.
_REFUSALS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
    errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE,
)  # fmt: skip


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=options.examples(
        "ddbench synth --method infer --ipc 10    make a synthetic set of the embedded digits",
        "ddbench eval                             train students on every set that is not judged yet",
        "ddbench leaderboard                      write leaderboards/*.md from the records",
    ),
)
@click.version_option(__version__, prog_name="ddbench")
def commands() -> None:
    """Distil data sets, judge what was distilled, read the boards.

    Sets, teachers and unfinished work live in ./artifacts (or DDBENCH_HOME), records and boards in ./leaderboards
    (or DDBENCH_LEADERBOARDS), data in --data-dir, DDBENCH_DATA or ~/.cache/ddbench. Every command can be stopped at
    any time and repeated; it goes on where it was.
    """


for command in (synthesize, evaluate, leaderboard, list_, show, export, import_, adopt, clean, doctor):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line, then exits.

    A fault of input or surroundings is one line and exit code 2 (128 + n after signal n); a bug keeps its traceback.

    Args:
        arguments: what follows ``ddbench``; by default those of the process.
    """
    interruption.install()
    warnings.formatwarning = _one_line
    try:
        sys.exit(commands(arguments, prog_name="ddbench", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        message, command_path = error.format_message(), error.ctx.command_path if error.ctx else "ddbench"
        _fail(f"{message}{'' if message.endswith(('.', '?')) else '.'} See {command_path} --help", error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except DDBenchError as error:
        _fail(str(error), error.exit_code)
    except Exception as error:
        if number := interruption.requested():  # an import, for example, fails in its own way when it is interrupted
            stopped = InterruptedRunError(number, "at once")
            _fail(str(stopped), stopped.exit_code)
        if _is_out_of_memory(error):
            _fail(
                f"out of memory ({str(error).partition(chr(10))[0]:.200}); make room and repeat the command, which "
                "goes on where it was, or ask for less: a smaller batch (--set …batch=…), narrower networks (-x0.5)",
                DDBenchError.exit_code,
            )
        if " does not have a deterministic implementation" in str(error):
            operation = str(error).partition(" does not have")[0]
            _fail(
                f"{operation} has no deterministic form on this device; repeat the command without --deterministic",
                DDBenchError.exit_code,
            )
        if not isinstance(error, OSError) or error.errno not in _REFUSALS:
            raise
        place = f" {error.filename}" if error.filename else ""
        _fail(
            f"cannot read or write{place}: {error.strerror}; make room or choose another folder, then repeat the "
            "command",
            DDBenchError.exit_code,
        )


def _is_out_of_memory(error: Exception) -> bool:
    """Says whether memory was asked for that is not there; torch has a class of its own, but on a CPU only a text."""
    name, text = type(error).__name__, str(error)
    return isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in text


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Returns a warning as people read it: ours without the place in the code, which says nothing to them."""
    place = "" if Path(filename).parent.name in ("dd_bench", "cli") else f" ({category.__name__}, {filename}:{lineno})"
    return f"ddbench: {' '.join(str(message).split())}{place}\n"


def _fail(message: str, exit_code: int) -> NoReturn:
    click.echo(f"ddbench: {one_line(' '.join(message.split()))}", err=True)
    sys.exit(exit_code)
