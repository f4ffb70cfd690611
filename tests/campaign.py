"""Tries to lose work, to crash on files, and to reach outside: what ``docs/reliability.md`` says was measured here.

    make campaign                                            # the size that fits ten minutes of one core
    .venv/bin/python tests/campaign.py --kills 20 --inputs 10000 --write
    .venv/bin/python tests/campaign.py --quick               # seconds; part of make test

Everything runs in processes forked from this one, which have imported everything, in a folder of its own. An input is
a file that was damaged or made up; opening it must work or end in one sentence, within ten seconds and 2 GB.
"""

import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
sys.path.insert(0, str(Path(__file__).parents[1]))

import resource

import torch
import tyro
import xarray as xr

from models import command, loop, train
from models.errors import InputError
from probes import neurons, probe, prune
from tests import damaged, sessions

ROOT = Path(__file__).parents[1]
SECONDS, MEGABYTES = 10.0, 2048  # what one input may take
SMALL = ["--fields", "d_model=16", "n_heads=2", "n_steps=2", "--batch-size", "32", "--val-limit", "64"]
ON_CPU = ["--device", "cpu"]


@dataclass
class Ended:
    """How a forked process ended: exit code (negative: the signal), wall seconds, its largest memory, what it said."""

    code: int
    seconds: float
    megabytes: float
    said: str


@dataclass
class Line:
    """A line of the table."""

    what: str
    tried: int = 0
    good: int = 0
    note: str = ""
    wrong: list[str] = field(default_factory=list)


# Processes


def start(function: Callable[[], object], said: Path, limit: int | None = None) -> int:
    """Fork; the child runs `function`, what it says goes to a file, and it may write files of `limit` bytes at most."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 0
    try:
        file = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        function()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        code = 70
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int, said: Path, started: float) -> Ended:
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, time.monotonic() - started, usage.ru_maxrss / 1024, said.read_text(errors="replace"))


def called(job: str, words: list, work: Path, after: float | None = None, how: int = signal.SIGKILL, **more) -> Ended:
    """A command in a process of its own, which gets a signal `after` so many seconds, from when `since` is there; the
    clock starts with it.
    """
    since, started = more.pop("since", work), time.monotonic()
    child = start(lambda: run_command(job, [*map(str, words)]), work / "said", **more)
    if after is not None:
        while not since.exists() and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.01)
        time.sleep(after)
        started = time.monotonic()
        os.kill(child, how)
    return ended(child, work / "said", started)


def run_command(job: str, words: list[str]) -> None:
    loop.SAVE_EVERY = 0.02
    functions = {"train": train.train, "prune": prune.prune, "neurons": probe.as_command(neurons.measure)}
    sys.argv = [job, *words]
    command.run(functions[job], job)


# Long jobs that are killed, stopped, and run out of disk


def jobs(work: Path) -> dict[str, tuple[list, Callable[[Path], object]]]:
    """The words of each long job but its place, and what it ends in."""
    training = ["--data", "shapes-easy:256", "--model", "bvit_easy", *SMALL, "--epochs", "2", "--workers", "0", *ON_CPU]
    pruning = ["--steps", "1", "--data", "shapes-easy:128", "--fields", "d_model=8", "n_heads=2", "n_steps=3"]
    pruning += ["--batch-size", "16", "--epochs", "2", "--graft-epochs", "1", "--replicates", "1", "--val-limit", "50"]
    painting = [work / "model", "--limit", "20", "--neurons", "3", "--iterations", "10", "--copies", "1", *ON_CPU]
    return {
        "train": (training, lambda run: torch.load(run / "last.pt", weights_only=True)["parts"]),
        "prune": ([*pruning, *ON_CPU], lambda run: xr.load_dataset(run / "prune.nc", engine="h5netcdf").drop_attrs()),
        "neurons": (painting, lambda run: xr.load_dataset(run / "neurons.nc", engine="h5netcdf").drop_attrs()),
    }


def placed(job: str, words: list, run: Path) -> list:
    return [*words, "--out", run / "neurons.nc"] if job == "neurons" else [*words, "--out", run, "--resume"]


def same(one: object, two: object) -> bool:
    """Bit for bit, but for seconds."""
    if isinstance(one, xr.Dataset):
        return one.identical(two)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one if key != "seconds")
    return all(map(same, one, two)) if isinstance(one, list | tuple) else one == two


def killed(work: Path, kills: int, rng: random.Random) -> list[Line]:
    lines = []
    for job, (words, result) in jobs(work).items():
        straight, run, line = work / f"{job}-straight", work / f"{job}-killed", Line(f"kill -9 of {job}, then resumed")
        whole = called(job, placed(job, words, straight), work)
        assert whole.code == 0, whole.said
        while line.tried < kills:
            end = called(job, placed(job, words, run), work, after=rng.uniform(0.1, 0.9) * whole.seconds)
            line.tried += end.code == -signal.SIGKILL
            if end.code not in (0, -signal.SIGKILL):
                line.wrong.append(end.said)
                break
            if end.code == 0 or line.tried == kills:
                check(line, called(job, placed(job, words, run), work), result, run, straight)
                shutil.rmtree(run)
        line.good = line.tried - len(line.wrong)
        line.note = "bit-identical to a run that nothing interrupted"
        lines.append(line)
    return lines


def check(line: Line, end: Ended, result: Callable[[Path], object], run: Path, straight: Path) -> None:
    left = [path.name for path in run.rglob("*.tmp")]
    if end.code or left or not same(result(run), result(straight)):
        line.wrong.append(f"{end.said} {left}")


def stopped(work: Path) -> list[Line]:
    """Ctrl-C and SIGTERM in the middle: saved, and out within five seconds with 130 and 143."""
    lines, (words, result) = [], jobs(work)["train"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        line, run = Line(f"{number.name} to train", tried=1), work / f"stopped-{code}"
        end = called("train", placed("train", words, run), work, after=0, how=number, since=run / "last.pt")
        if end.code == code and end.seconds < 5:
            check(line, called("train", placed("train", words, run), work), result, run, work / "train-straight")
        else:
            line.wrong.append(f"{end.code} after {end.seconds:.1f} s: {end.said}")
        line.good = 1 - len(line.wrong)
        line.note = f"left with {end.code} after {end.seconds:.1f} s, resumed bit-identically"
        lines.append(line)
    return lines


def without_room(work: Path) -> Line:
    """A disk that is full from some size of file on: exit code 2, what was there intact, nothing left half written."""
    line, (words, _) = Line("disk full while train saves"), jobs(work)["train"]
    for limit in (0, 1_000, 20_000):
        run = work / f"full-{limit}"
        called("train", [*placed("train", words, run), "--stop-after", "3"], work)
        before = {path.name: path.read_bytes() for path in run.glob("*.pt")}
        end = called("train", placed("train", words, run), work, limit=limit)
        kept = {path.name: path.read_bytes() for path in run.glob("*.pt")} == before
        line.tried += 1
        if end.code == 2 and kept and "Traceback" not in end.said and not list(run.rglob("*.tmp")):
            line.good += 1
        else:
            line.wrong.append(f"limit {limit}: {end.code} {kept} {end.said[-300:]}")
    line.note = "exit code 2, what was saved intact, nothing half written"
    return line


def linked(work: Path) -> Line:
    """--force over links to somebody else's folder."""
    line, outside = Line("--force through links out of the run folder"), work / "outside"
    words = jobs(work)["train"][0]
    outside.mkdir()
    (outside / "ckpt.pt").write_text("somebody else's")
    for name in ("ckpt.pt", "last.pt", "train.jsonl", "rounds"):
        run = work / f"linked-{name}"
        run.mkdir()
        (run / "lock").touch()
        (run / name).symlink_to(outside if name == "rounds" else outside / "ckpt.pt")
        if name == "rounds":
            (outside / "00").mkdir()
            (outside / "00" / "ckpt.pt").write_text("somebody else's")
        end = called("train", [*words, "--out", run, "--force"], work)
        line.tried += 1
        if end.code == 2 and {path.read_text() for path in outside.rglob("*.pt")} == {"somebody else's"}:
            line.good += 1
        else:
            line.wrong.append(f"{name}: {end.code} {end.said}")
    line.note = "refused, nothing outside touched"
    return line


# Files


def opened(work: Path, inputs: int, seed: int) -> list[Line]:
    """Every kind of file, damaged in `inputs` ways over all kinds."""
    lines, each = [], -(-inputs // len(damaged.KINDS))
    for name, kind in damaged.KINDS.items():
        lines.append(opened_kind(work, name, kind, each, seed))
        print(f"  {lines[-1].what}: {lines[-1].note}", file=sys.stderr)
    return lines


def opened_kind(work: Path, name: str, kind: damaged.Kind, each: int, seed: int) -> Line:
    """One kind; the child notes each input before and after, so that a hang or a crash is known by its input."""
    folder, line, found, worst, most = work / name.replace(" ", "-"), Line(name), Counter(), 0.0, 0.0
    folder.mkdir()
    opening = kind.prepare(folder)
    whole, notes, first = kind.file(folder).read_bytes(), work / "notes", 0
    while first < each:
        notes.write_text("")
        files = Files(folder, kind, opening, whole, seed)
        child = start(partial(open_some, files, range(first, each), notes), work / "said")
        hung = watched(child, notes)
        end = ended(child, work / "said", time.monotonic())
        most = max(most, end.megabytes)
        lines = notes.read_text(errors="replace").splitlines()
        for note in lines:
            number, outcome, seconds, said = note.split(" ", 3)
            if outcome != "started":
                first, worst = first + 1, max(worst, float(seconds))
                found[outcome] += 1
                if outcome == "traceback":
                    line.wrong.append(f"input {number}: {said}")
        if first < each:
            found["hung" if hung else "crashed"] += 1
            line.wrong.append(f"input {first}: {'hung' if hung else end.code} {end.said[-200:]}")
            first += 1
    kind.file(folder).write_bytes(whole)
    line.tried, line.good = each, found["opened"] + found["sentence"]
    line.note = f"{found['opened']} opened, {found['sentence']} one sentence; slowest {worst:.1f} s, {most:.0f} MB"
    if most > MEGABYTES:
        line.wrong.append(f"{most:.0f} MB")
    return line


def watched(child: int, notes: Path) -> bool:
    """Wait for a process; one whose notes stand still for too long is killed."""
    changed, size = time.monotonic(), -1
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.02)
        if notes.stat().st_size != size:
            changed, size = time.monotonic(), notes.stat().st_size
        if time.monotonic() - changed > SECONDS:
            os.kill(child, signal.SIGKILL)
            return True
    return False


@dataclass
class Files:
    """Damaged files of one kind, each a function of the seed and its number."""

    folder: Path
    kind: damaged.Kind
    opening: Callable[[], object]
    whole: bytes
    seed: int

    def write(self, number: int) -> None:
        rng = random.Random(f"{self.seed} {number}")
        self.kind.file(self.folder).write_bytes(self.kind.damage(self.whole, rng, self.folder.parent / "outside"))

    def outcome(self) -> tuple[str, str]:
        try:
            self.opening()
        except (InputError, ValueError) as error:
            is_sentence = isinstance(error, InputError) or self.kind.says_value_error
            return ("sentence" if is_sentence and "\n" not in str(error) else "traceback"), repr(error)
        except Exception as error:
            return "traceback", repr(error)
        return "opened", "-"


def open_some(files: Files, numbers: range, notes: Path) -> None:
    """Open one damaged file after the other, as the child does."""
    socket.socket.connect = lambda *args: (files.folder.parent / "outside" / "fetched").touch()
    with open(notes, "a", buffering=1) as note:
        for number in numbers:
            files.write(number)
            note.write(f"{number} started 0 -\n")
            started = time.monotonic()
            outcome, said = files.outcome()
            note.write(f"{number} {outcome} {time.monotonic() - started:.2f} {' '.join(said.split())[:200]}\n")


# Visitors


def visited(visitors: int, seconds: float) -> Line:
    """Visitors of the dashboard at once; every answer without an error."""
    measured = sessions.sessions(ROOT / "runs", visitors=visitors, seconds=seconds)
    tried = len(measured.answers)
    what = f"answers to {visitors} visitors who move a slider, {seconds:.0f} s"
    return Line(what, tried, tried - len(measured.wrong), str(measured), measured.wrong)


# The table


def table(lines: list[Line], size: str) -> str:
    rows = [f"| {line.what} | {line.tried} | {line.good} | {line.note} |" for line in lines]
    wrong = [(line.what, said.strip().splitlines()[-1]) for line in lines for said in line.wrong[:3]]
    told = [f"- {what}: `{said[:90]}`" for what, said in wrong]
    heads = ["| what | tried | good | |", "|---|---|---|---|"]
    return "\n".join([*heads, *rows, "", f"Size of this run: {size}.", *(["", "Not good:", "", *told] if told else [])])


def campaign(
    *, kills: int = 3, inputs: int = 600, visitors: int = 20, seed: int = 0, quick: bool = False, write: bool = False
) -> None:
    """Kills, signals, full disks, links, damaged files and visitors; exit code 1 where anything was lost or went wrong.

    Args:
        kills: of each long job; 0 leaves long jobs out, with signals and full disks.
        inputs: damaged files, over all kinds.
        visitors: of the dashboard at once, for five minutes; 0 for none.
        seed: of moments and damage.
        quick: the part that runs in make test.
        write: put the table into docs/reliability.md.
    """
    kills, inputs, visitors = (0, 60, 0) if quick else (kills, inputs, visitors)
    torch.set_num_threads(1)
    started, rng = time.monotonic(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        damaged.model(work / "model")
        lines = [linked(work), *opened(work, inputs, seed)]
        lines += [*killed(work, kills, rng), *stopped(work), without_room(work)] if kills else []
        touched = sorted(path.name for path in (work / "outside").rglob("*") if path.name not in ("ckpt.pt", "00"))
    lines.append(Line("code executed, addresses fetched, files outside touched", 1, int(not touched), "none"))
    lines[-1].wrong += touched
    lines += [visited(visitors, 300)] if visitors else []
    tried, seconds = f"{kills} kills a job, {inputs} damaged files, {visitors} visitors", time.monotonic() - started
    size = f"{tried}, seed {seed}, {seconds:.0f} s"
    text = table(lines, size)
    print(text)
    if write:
        page = ROOT / "docs" / "reliability.md"
        head = page.read_text().partition("| what | tried")[0]
        page.write_text(f"{head}{text}\n")
    sys.stdout.flush()
    os._exit(int(any(line.wrong for line in lines)))  # a library's own threads may not end in a process that forked


if __name__ == "__main__":
    tyro.cli(campaign)
