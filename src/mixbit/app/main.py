"""The command line: parse, call, print. Figures and tables go to standard output, progress and messages to error."""

import logging
import os
import signal
import sys
from typing import Annotated, NoReturn, TextIO

import typer

from mixbit.app.commands.apply import apply
from mixbit.app.commands.demo import demo
from mixbit.app.commands.options import with_quiet
from mixbit.app.commands.plan import plan
from mixbit.app.commands.quantize import quantize
from mixbit.app.commands.report import report
from mixbit.app.commands.schema import schema
from mixbit.app.commands.steps import front, measure, search, study
from mixbit.app.commands.sweep import sweep
from mixbit.app.commands.verify import bench, list_, verify
from mixbit.core import InvalidInput, MixbitError, Said, end_like_interrupts, package_version, show, warn

#: What the program is called, however it is started.
NAME = "mixbit"
INTERRUPTED = 130
#: Exit code where what reads standard output ends first; that of typer.
READ_NO_FURTHER = 1

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for command in (quantize, measure, search, front, apply, verify, bench, report, study, sweep, demo):
    app.command()(with_quiet(command))
app.add_typer(plan, name="plan")
app.command(name="list")(with_quiet(list_))
app.command()(schema)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mixbit {package_version()}")
        raise typer.Exit


@app.callback()
def mixbit(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Choose bits per layer of a trained PyTorch network, write a file for its runtime, run it and verify it."""


def main() -> None:
    """Run the command line; exit 0 done, 2 bad input, 3 infeasible budget, 4 not as promised, 128 + a signal."""
    came = end_like_interrupts()
    sys.stdout = sys.stdout or _nowhere(1)
    sys.stderr = sys.stderr or _nowhere(2)
    if sys.stdout is not None and sys.stdout is sys.__stdout__:
        _reserve_standard_output()
    log = logging.getLogger("mixbit")
    if not log.handlers:
        log.addHandler(Said())
    log.setLevel(logging.INFO)
    show("lines")
    try:
        status = app(standalone_mode=False, prog_name=NAME)
        (sys.stdout or sys.stderr).flush()
        if status == INTERRUPTED:
            _end(came)
        sys.exit(status)
    except OSError as error:
        if error.filename is not None:
            raise
        _stop_printing()
        if isinstance(error, BrokenPipeError):  # whoever read it has seen enough
            sys.exit(READ_NO_FURTHER)
        warn(f"mixbit: standard output cannot be written ({error.strerror}); files that were to be made are there")
        sys.exit(InvalidInput.exit_code)
    except typer.TyperException as error:  # wrong usage: an unknown option, a missing argument
        warn(f"mixbit: {error.format_message().rstrip('.') or 'give a command'}; see {_words_before(error)} --help")
        sys.exit(InvalidInput.exit_code)
    except MixbitError as error:
        warn(f"mixbit: {error}")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _end(came)


def _words_before(error: typer.TyperException) -> str:
    """The command that was used wrongly, as `mixbit quantize`."""
    context = getattr(error, "ctx", None)
    return NAME if context is None else context.command_path


def _nowhere(number: int) -> TextIO:
    """A stream for one that the program was started without; its number would go to the next file that is opened."""
    handle = os.open(os.devnull, os.O_RDWR)
    if handle != number:
        os.dup2(handle, number)
        os.close(handle)
    return open(number, "w", encoding="utf-8")


def _stop_printing() -> None:
    """Let Python throw away what it could not print, and not try again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _end(came: list[int]) -> NoReturn:
    """Exit as after the first of these signals, or after Ctrl-C where there is none."""
    number = signal.Signals(came[0] if came else signal.SIGINT)
    warn("mixbit: interrupted" + (f" by {number.name}" if came else ""))
    sys.exit(128 + number)


def _reserve_standard_output() -> None:
    """Send what C code prints to standard error, so that only results go to standard output, as JSON must.

    HiGHS 1.12, the one inside scipy 1.17, prints a debug line whatever its options say.
    """
    try:
        results = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        return
    sys.stdout = open(results, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: SIM115


if __name__ == "__main__":
    main()
