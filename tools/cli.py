"""The `edgemem` command: finds the verb, runs it, and turns what goes wrong into one message and an exit status.

0 done, 1 a clear error, 2 wrong usage, 70 a bug, 130 Ctrl-C, 141 the reader of our output went away, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from edgemem.runtime.errors import EdgememError
from edgemem.tools.streams import abandon_stdout, settle_streams

VERBS = {
    "pull": "fetch a model",
    "compile": "turn model files into a package for this device",
    "run": "answer one prompt and report the speed",
    "chat": "talk with a model",
    "split": "share a model's layers with a server of your own",
    "memory": "look at a stored conversation, or forget it",
    "listen": "take pictures while hands are heard at work",
    "events": "look at what was heard and taken",
    "demo": "see it at work on data that comes with it",
    "inspect": "show what is inside a package or model file",
    "eval": "measure the quality of a package on a text",
    "profile": "measure how much of the memory bandwidth this device delivers",
    "doctor": "say what this machine has and what is missing",
}

_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
EXAMPLES = """examples:
  edgemem pull smollm2-135m && edgemem compile smollm2-135m
  edgemem run -m smollm2-135m -p "Why is the sky blue?"
"""


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"edgemem {version('edgemem-runtime')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    debug = os.environ.get("EDGEMEM_DEBUG") == "1"
    warnings.formatwarning = _one_line
    try:
        with _interrupted_by_sigterm():
            settle_streams()
            args = _parser().parse_args(argv)
            debug = debug or args.debug
            status = int(args.run(args))
            sys.stdout.flush()  # so that a closed pipe shows here and not at exit
            return status
    except SystemExit as stop:  # argparse, or a usage error that only the command could see
        return int(stop.code or 0)
    except KeyboardInterrupt as stop:
        return 143 if isinstance(stop, _Terminated) else 130
    except Exception as error:  # noqa: BLE001 - the last door: what is not known below is a bug, and is shown as one
        return _failure(error, debug=debug)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as a person reads it, without the line of source that gave it."""
    return f"edgemem: {message}\n"


def _failure(error: Exception, *, debug: bool) -> int:
    if isinstance(error, EdgememError):
        return _say(str(error))
    if isinstance(error, MemoryError):
        return _say("no memory is left to this process\n  do: choose a smaller -c, or raise its limit (ulimit -v)")
    if isinstance(error, BrokenPipeError):
        abandon_stdout()
        return 141
    if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT_ERRORS:
        abandon_stdout()
        return _say(f"the output cannot be written\n  got: {error.strerror}")
    return _report_bug(error, debug=debug)


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: what cleans up after Ctrl-C cleans up after it too."""


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Terminated

    own_thread = threading.current_thread() is not threading.main_thread()  # only the main one may set handlers
    if own_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(message: str) -> int:
    print(f"edgemem: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="edgemem", description="Runs a language model on this device.", epilog=EXAMPLES, formatter_class=form
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show a traceback for a bug (or EDGEMEM_DEBUG=1)")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb, summary in VERBS.items():
        module = import_module(f"edgemem.tools.commands.{verb}")
        command = verbs.add_parser(verb, help=summary, description=module.__doc__, formatter_class=form)
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        command.set_defaults(run=module.run, usage_error=command.error)
        module.configure(command)
    return parser


def _report_bug(error: Exception, *, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    hint = "" if debug else "; run again with --debug to see where, and report it"
    print(f"edgemem: this is a bug: {type(error).__name__}: {error}{hint}", file=sys.stderr)
    return 70
