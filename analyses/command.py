"""How the commands of this package end: 0 done, 2 bad input (one sentence on standard error), 130 stopped by Ctrl-C,
143 by SIGTERM. As `models.command` has it, of which nothing here may know.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import tyro

called: dict[str, str] = {}  # how a command was called, where not as python -m


def run(function: Callable[..., object], prog: str) -> None:
    """Parse ``sys.argv`` into the arguments of `function`, call it, exit with the house's codes."""
    prog, stopped_by = called.get(prog, prog), [signal.SIGINT]

    def stop(number: int, frame: Any) -> None:
        stopped_by[0] = signal.Signals(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)  # so that what is half written is removed
    try:
        tyro.cli(function, prog=prog)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone, as | head does once it has its lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f"{error.strerror or error}{f' at {error.filename}' if error.filename else ''}"
        end(f"{prog}: {where}; what was already written is intact, free or choose another place", 2)
    except ValueError as error:
        end(f"{prog}: {error}", 2)
    except KeyboardInterrupt:
        end(f"\n{prog}: stopped; run it again to make it anew", 128 + stopped_by[0])
    finally:
        signal.signal(signal.SIGTERM, before)


def end(said: str, code: int) -> None:
    with suppress(OSError):  # where not even this can be written, the code says it
        print(said, file=sys.stderr)
    raise SystemExit(code)
