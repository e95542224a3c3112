"""`python -m deploy VERB`: the one command of the operator, and the one place for its surroundings.

What this computer refuses while a verb is at work (a disk, a network, a permission) is told in one
sentence; a traceback is a fault of this program.
"""

import contextlib
import errno
import io
import os
import subprocess
import sys

from deploy import Refusal

REFUSED = 2
NOBODY_READS = 141
"""As every program says whose reader has gone: 128 and the number of SIGPIPE."""

RIGHT = {
    errno.EACCES: "run it as a user who may, or name another place",
    errno.EPERM: "run it as a user who may, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EISDIR: "a file belongs there: move the folder away",
    errno.ENOTDIR: "a folder belongs there: move the file away",
    errno.EEXIST: "a folder belongs there: move the file away",
}


def main() -> int:
    """Run one verb and give its exit code; what it can't do is one sentence on standard error."""
    prepare_streams()
    try:
        return run()
    except (SystemExit, BrokenPipeError):  # what click, rich and Python make of a closed pipe
        return NOBODY_READS
    except Refusal as refusal:
        return say(str(refusal))
    except KeyboardInterrupt:
        say("stopped at your request.")
        return 130
    except (OSError, subprocess.SubprocessError, UnicodeError, RecursionError) as error:
        return say(sentence(error))
    finally:
        end_output()


def run() -> int:
    """Run the verb that the command line names."""
    try:
        import click  # noqa: PLC0415 - a package that is missing is told in a sentence, too

        from deploy.verbs import deploy  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        raise Refusal(
            f"{error.name} is not installed: use the checkout's .venv/bin/python, which"
            " `python3 -m venv .venv` and `.venv/bin/python -m pip install -e .` make there."
        ) from error
    try:
        code: int = deploy(standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except click.ClickException as error:
        error.show()
        return REFUSED
    except click.Abort as stop:
        if isinstance(stop.__context__, EOFError):
            raise Refusal("nobody answers the question: give --yes to go on without.") from stop
        raise KeyboardInterrupt from stop


def sentence(error: Exception) -> str:
    """What was refused, where and why, and what would be right where that is known."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"`{error.cmd}` did not end within {error.timeout:g} s."
    if not isinstance(error, OSError) or not error.strerror:
        return " ".join(str(error).split())[:500] or type(error).__name__
    where = [os.fsdecode(error.filename)] if isinstance(error.filename, str | bytes) else []
    right = [RIGHT[error.errno]] if error.errno in RIGHT else []
    return ": ".join([*where, error.strerror, *right]) + "."


def say(words: str) -> int:
    """Tell the operator, if there is anywhere to tell it; the exit code of a refusal."""
    words = "".join(c if c.isprintable() or c == "\n" else "?" for c in words)  # a stranger's, too
    with contextlib.suppress(OSError):
        print(f"deploy: {words}", file=sys.stderr, flush=True)
    return REFUSED


def prepare_streams() -> None:
    """Have all three streams, and lose a character rather than a table that has one too many.

    A stream that is closed would make a socket or a file of ours the verb's standard output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def end_output() -> None:
    """Python writes what is left at its end: to nowhere, where that can't be written any more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
