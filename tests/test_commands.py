"""Every ``python -m`` command that README and docs name is taken by its own parser, as it is written there.

How: the command's file runs as ``__main__``, but in the place of the function that it hands to tyro stands one with the
same signature that does nothing. So modules, options, their values and what excludes what are checked, in a fraction of
a second and without data; what the commands do is tested elsewhere. Run with: pytest tests/test_commands.py
"""

import errno
import functools
import inspect
import pickle
import re
import shlex
import signal
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

from models import command
from models.errors import InputError, Stopped

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"python -m ((?:models|probes|analyses)\.\w+)((?:\\\n|[^`#\n|;)])*)")


def commands(text: str) -> list[tuple[str, str]]:
    """Module and arguments of every command in a page; of one that is abridged (...) the module alone."""
    found = [(module, " ".join(rest.replace("\\\n", " ").split())) for module, rest in COMMAND.findall(text)]
    return [(module, "" if "..." in rest else rest) for module, rest in found]


ALL = sorted({command for page in PAGES for command in commands(page.read_text(encoding="utf-8"))})
WHOLE = [(module, rest) for module, rest in ALL if rest and not rest.startswith((",", "."))]


@pytest.fixture
def parse(monkeypatch, command):
    """The exit code of a command that is parsed and not run."""

    def only_parse(function, **options):
        def nothing(*args, **kwargs) -> None:
            pass

        functools.update_wrapper(nothing, function)
        nothing.__signature__ = inspect.signature(function)
        nothing.__annotations__ = typing.get_type_hints(function, include_extras=True)
        del nothing.__wrapped__
        return cli(nothing, **options)

    cli = tyro.cli
    monkeypatch.setattr(tyro, "cli", only_parse)
    return lambda module, rest: command(module, *shlex.split(rest))[0]


def test_there_are_commands_to_try() -> None:
    assert len(WHOLE) > 25 and {module.partition(".")[0] for module, _ in ALL} == {"models", "probes", "analyses"}


@pytest.mark.parametrize(("module", "rest"), WHOLE, ids=" ".join)
def test_a_command_is_taken_as_it_is_written(module, rest, parse) -> None:
    assert parse(module, rest) == 0


@pytest.mark.parametrize("module", sorted({module for module, _ in ALL}))
def test_a_command_that_is_named_is_there(module) -> None:
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("rest", ["runs/demo --limt 3", "runs/demo --limit many", "runs/demo --map heat", ""])
def test_a_wrong_command_is_noticed(rest, parse) -> None:
    assert parse("probes.pointing_game", rest) == 2


HALF_READ = """
import sys
from models import command

def long() -> None:
    print(0, flush=True)
    sys.stdin.read()  # until the reader has gone
    for i in range({lines}):
        print(i)

sys.argv = ["long"]
command.run(long, "long")
"""


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_goes_early_is_no_error(lines) -> None:
    half_read, pipe = [sys.executable, "-c", HALF_READ.format(lines=lines)], subprocess.PIPE
    with subprocess.Popen(half_read, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as child:
        assert child.stdout.readline() == "0\n"
        child.stdout.close()
        child.stdin.close()
        assert child.stderr.read() == "" and child.wait() == 0


def test_where_not_even_the_sentence_can_be_written_the_code_says_it(monkeypatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "run/last.pt")

    def write(_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "argv", ["full"])
    monkeypatch.setattr(sys.stderr, "write", write)
    with pytest.raises(SystemExit) as end:
        command.run(full, "full")
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("words", "where"),
    [([""], "the first word"), (["run", "--out", ""], "the word after --out"), (["--out="], "--out")],
)
def test_an_empty_word_is_no_folder(words, where, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["short", *words])
    with pytest.raises(SystemExit) as end:
        command.run(lambda *words: None, "short", bad=ValueError)
    assert end.value.code == 2 and capsys.readouterr().err == (
        f"short: {where} is empty; is the variable set that stands there?\n"
    )


def test_output_that_was_closed_beforehand_is_for_nobody(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["short"])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    command.run(lambda: print("said"), "short")
    for name in ("stdout", "stderr"):
        getattr(sys, name).close()


def test_bad_input_of_an_analysis_is_a_sentence_too(monkeypatch, capsys) -> None:
    def analyse() -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(sys, "argv", ["analyse"])
    with pytest.raises(SystemExit) as end:
        command.run(analyse, "analyse", bad=ValueError)
    assert end.value.code == 2 and capsys.readouterr().err == "analyse: two\\nlines\n"
    with pytest.raises(ValueError, match="lines"):
        command.run(analyse, "analyse")


def test_too_little_memory_is_a_sentence_and_other_errors_stay_what_they_are(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["it"])
    for large in (lambda: torch.empty(10**15), lambda: np.empty(10**15), lambda: bytearray(10**15)):
        with pytest.raises(SystemExit) as end:
            command.run(large, "it")
        assert end.value.code == 2 and "not enough memory" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="size of tensor"):
        command.run(lambda: torch.zeros(2) + torch.zeros(3), "it")


@pytest.mark.parametrize("can_resume", [True, False])
def test_what_was_stopped_names_resume_where_there_is_such_an_option(can_resume, monkeypatch, capsys) -> None:
    def long(*, resume: bool = False) -> None:
        raise Stopped(signal.SIGTERM)

    def short() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["it"])
    with pytest.raises(SystemExit) as end:
        command.run(long if can_resume else short, "it")
    assert end.value.code == (143 if can_resume else 130)
    assert ("--resume" in capsys.readouterr().err) == can_resume


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("--out=~/run", "--out=HOME/run"),
        ("~/run", "HOME/run"),
        ("--data=folder:~/a", "--data=folder:~/a"),
        ("--fields", "--fields"),
        ("a~b", "a~b"),
        ("~nobody-at-all/x", "~nobody-at-all/x"),
        ("--out=a\nb", "--out=a\nb"),
    ],
)
def test_a_tilde_is_the_home_folder_behind_an_option_too(word, place, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert command.at_home(word) == place.replace("HOME", "/home/me")


def test_a_sentence_stays_one_line_whatever_it_quotes() -> None:
    said = InputError("a\nb\x1b[31m\udcff is no field, Größe is, ok")
    assert str(said) == r"a\nb\x1b[31m\udcff is no field, Größe is, ok"
    assert str(pickle.loads(pickle.dumps(said))) == str(said)
