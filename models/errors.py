"""What every command says when it cannot go on: one sentence, exit code 2; and how it is stopped."""

import re

ENDLESS = re.compile(r"\S{300,}")  # a word that no reader would read to its end
ADDRESS = re.compile(r"(?: object)? at 0x[0-9a-fA-F]+")


def without_addresses(message: str) -> str:
    """Python's name of an object, as in ``<_io.BytesIO object at 0x7f...>``, without where in memory it lies."""
    return ADDRESS.sub("", message)


class InputError(ValueError):
    """Bad input. The message is one sentence: what is wrong, where, and what to do about it.

    It may quote names out of anybody's files: what is not printable, such as a line break, is escaped as in Python, and
    a word of hundreds of characters loses its middle.
    """

    def __init__(self, message: object = ""):
        text = ENDLESS.sub(lambda word: f"{word[0][:200]}...{word[0][-40:]}", without_addresses(str(message)))
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


class UnreadableImage(InputError):
    """One image that cannot be decoded; streams leave it out and count it."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name} cannot be read as an image ({reason}); repair or remove it")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.name, self.reason)  # so that it survives the way from a loading process


class Stopped(KeyboardInterrupt):
    """Long work was asked to stop by a signal, and has saved its state."""

    def __init__(self, signal: int):
        super().__init__(signal)
        self.signal = signal


def brief(error: Exception, line: int = 0) -> str:
    """One line of an error's text, or its kind where it says nothing."""
    lines = without_addresses(str(error)).strip().splitlines()
    return lines[line].strip()[:120] if lines else type(error).__name__


def quoted(value: object) -> str:
    """A value as a message shows it: as in Python, its middle left out where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}...{text[-15:]}"


def require(*checks: tuple[bool, str]) -> None:
    """Raise `InputError` with the complaint of the first check that does not hold."""
    for holds, complaint in checks:
        if not holds:
            raise InputError(complaint)
