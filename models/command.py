"""Turns a typed function into a command: arguments by tyro, one exit code per kind of end.

0 done, 2 bad input (one sentence on standard error), 130 stopped by the user. Nothing heavy is
imported here, so ``--help`` answers before torch is loaded.
"""

import errno
import os
import sys
from collections.abc import Callable


def run(function: Callable[..., object], prog: str) -> None:
    """Parse ``sys.argv`` into the arguments of `function`, call it, exit with the house's codes."""
    import tyro

    from models.errors import InputError

    try:
        tyro.cli(function, prog=prog)
    except InputError as error:
        _stop(f"{prog}: {error}", 2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        where = f" at {error.filename}" if error.filename else ""
        _stop(f"{prog}: {error.strerror}{where}; what was already written is intact, free or choose another place", 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        _stop(f"\n{prog}: stopped by the user; run it again to go on (long commands: with --resume)", 130)


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(code)
