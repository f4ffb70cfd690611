"""Turns a typed function into a command: arguments by tyro, one exit code per kind of end.

0 done, 2 bad input (one sentence on standard error), 130 stopped by Ctrl-C, 143 by SIGTERM. Nothing heavy
is imported here, so ``--help`` answers before torch is loaded, and `analyses`, which knows no model, ends so too.
"""

import errno
import functools
import inspect
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import tyro

from models.errors import InputError, Stopped

NO_ROOM = (  # what a disk or a name that somebody typed may lack
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
)


@dataclass(frozen=True)
class Preset:
    """A flag such as ``--paper``: other defaults, over which everything else that is typed wins."""

    help: str
    defaults: Mapping[str, Any]

    @property
    def flag(self) -> Any:
        return Annotated[bool, tyro.conf.arg(help=self.help)]


Presets = Mapping[str, Preset]  # by the flag's name
called: dict[str, str] = {}  # how a command was called, where not as python -m


def run(
    function: Callable[..., object],
    prog: str,
    presets: Presets | None = None,
    bad: type[Exception] = InputError,
) -> None:
    """Parse ``sys.argv`` into the arguments of `function`, call it, exit with the house's codes.

    `bad` is what `function` raises at bad input.
    """
    prog, words = called.get(prog, prog), [at_home(word) for word in sys.argv[1:]]
    hear_nobody()
    try:
        refuse_empty(words)
        with stopped_by_sigterm():
            tyro.cli(with_presets(function, presets or {}, words), prog=prog, args=words)
            sys.stdout.flush()
    except bad as error:
        _stop(f"{prog}: {InputError(error)}", 2)
    except BrokenPipeError:
        silence()
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = f" at {str(error.filename)[:200]}" if error.filename else ""
        _stop(f"{prog}: {error.strerror}{where}; what was already written is intact, free or choose another place", 2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _stop(f"{prog}: there is not enough memory for this; lower --batch-size, or ask for less or smaller", 2)
    except KeyboardInterrupt as stop:
        code = 128 + stop.signal if isinstance(stop, Stopped) else 130
        resumed = " with --resume to go on" if "resume" in inspect.signature(function).parameters else ""
        _stop(f"\n{prog}: stopped; run it again{resumed}", code)


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM is heard as Ctrl-C is, so that what is half written is removed; a training loop saves first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy or torch ran out of memory, of the machine or the accelerator."""
    is_of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or is_of_torch


def at_home(word: str) -> str:
    """``~`` at the start of an argument as the home folder, as a shell has it, but for ``--out=~/run``."""
    option, tilde, rest = re.fullmatch("(--[^=]*=)?(~?)(.*)", word, re.DOTALL).groups()
    return (option or "") + (os.path.expanduser(tilde + rest) if tilde else rest)


def refuse_empty(words: Sequence[str]) -> None:
    """An empty word comes from a variable that is not set; to a command it would be this folder, or the default."""
    for before, word in zip(("", *words), words, strict=False):
        if not word or re.fullmatch("--[^=]+=", word):
            where = word.rstrip("=") or (f"the word after {before}" if before else "the first word")
            raise InputError(f"{where} is empty; is the variable set that stands there?")


def with_presets(function: Callable[..., object], presets: Presets, words: Sequence[str]) -> Callable[..., object]:
    """`function` with a flag for each preset, and with the defaults of the one that `words` of a command line name."""
    if not presets:
        return function
    named = [f"--{name}" for name in presets if f"--{name}" in words]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} exclude each other")
    defaults = presets[named[0].removeprefix("--")].defaults if named else {}
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(default=defaults.get(name, parameter.default))
        for name, parameter in signature.parameters.items()
    ]
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=preset.flag)
        for name, preset in presets.items()
    ]

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> object:
        return function(*args, **{name: value for name, value in kwargs.items() if name not in presets})

    called.__signature__ = signature.replace(parameters=[*parameters, *flags])  # type: ignore[attr-defined]
    hints = get_type_hints(function, include_extras=True)
    called.__annotations__ = hints | {name: preset.flag for name, preset in presets.items()}
    del called.__wrapped__  # which tyro would look through
    return called


def hear_nobody() -> None:
    """Output that was closed beforehand (``>&-``) is for nobody, and its number for none of our files."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def silence() -> None:
    """Whoever read the output has gone, as ``| head`` does once it has its lines: the rest is for nobody."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(message: str, code: int) -> None:
    with suppress(OSError):  # where not even this can be written, the code says it
        print(message, file=sys.stderr)
    raise SystemExit(code)
