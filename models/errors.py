"""What every command says when it cannot go on: one sentence, exit code 2."""


class InputError(ValueError):
    """Bad input. The message is one sentence: what is wrong, where, and what to do about it."""
