"""The table of contents: every page, the results it shows, and the commands that make them.

It feeds the menu, the sidebar's "here" and "missing", the word on a page without its result, and the tests.
"""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """A file in a run's folder, and the command that makes it; ``{run}`` stands for the folder."""

    file: str
    command: str
    holds: str = ""  # a variable without which it is not what it should be
    start: str = ""  # what in the folder the command starts from
    makes_run: bool = False  # the command makes a run of its own
    identity: str = "checkpoint_sha256"  # the attribute that says which model it is of

    def made_by(self, run: Path) -> str:
        return self.command.format(run=shlex.quote(str(run)))

    def is_here(self, run: Path) -> bool:
        return os.path.isfile(run / self.file)  # false, too, in a folder that cannot be looked into

    def can_be_made(self, run: Path) -> bool:
        return not self.makes_run and os.path.exists(run / self.start)


@dataclass(frozen=True)
class Page:
    """One question: its file in ``views/``, how the menu shows it, the results it needs, and those it shows beside."""

    view: str
    title: str
    icon: str
    needs: tuple[Result, ...] = ()
    beside: tuple[Result, ...] = ()

    @property
    def path(self) -> Path:
        return Path(__file__).parent / "views" / f"{self.view}.py"


def of_probe(name: str, holds: str) -> Result:
    return Result(f"{name}.nc", f"python -m probes.{name} {{run}}", holds, start="ckpt.pt")


def of_control(name: str, holds: str = "accuracy") -> Result:
    """A control of a pruning, which starts from its rounds; both say which initialisation they rewind to."""
    command = f"python -m probes.prune --control {name} --out {{run}}"
    return Result(f"prune_{name}.nc", command, holds, start="rounds", identity="init_sha256")


def of_map(name: str) -> Result:
    """The pointing game of a map of relevance."""
    command = f"python -m probes.pointing_game {{run}} --map {name}"
    return Result(f"pointing_game.{name}.nc", command, "hit_ratio", start="ckpt.pt")


CHECKPOINT = Result("ckpt.pt", "python -m models.train --data shapes --out {run}")
POINTING_GAME = of_probe("pointing_game", "hit_ratio")
MAPS = {"attention": POINTING_GAME} | {name: of_map(name) for name in ("gradient", "chefer", "rollout")}
NEURONS = of_probe("neurons", "picture")
RANK = of_probe("rank", "k95")
TRAJECTORIES = of_probe("trajectories", "pacmap")
RECURRENCE = of_probe("recurrence", "accuracy")
ABLATION = of_probe("ablation", "untouched_accuracy")
ATTRIBUTION = of_probe("attribution", "node_of_image")
PATCHING = of_probe("patching", "effect")
INTERVENTION = of_probe("intervention", "change")
LENS = of_probe("lens", "recovered")
DYNAMICS = of_probe("dynamics", "increment_cka")
FACTORS = of_probe("factors", "selectivity")
OUTLIERS = of_probe("outliers", "accuracy_change")
DICTIONARY = of_probe("dictionary", "explained_by_all")
COST = of_probe("cost", "seconds_of_round")
TRANSFER = Result(
    "transfer.nc", "python -m probes.transfer {run} --data folder:PHOTOGRAPHS", "trainable_parameters", start="ckpt.pt"
)
PRUNE = Result("prune.nc", "python -m probes.prune --steps 8", "jaccard", makes_run=True, identity="init_sha256")
CONTROLS = {name: of_control(name) for name in ("shared", "random", "shuffled", "union")}
SWAP = of_control("swap", "swap")

PAGES = (
    Page("story", "Story", ":material/auto_stories:", (CHECKPOINT,)),
    Page("overview", "Overview", ":material/home:", (CHECKPOINT,), (RECURRENCE,)),
    Page("steps", "Steps", ":material/footprint:", (CHECKPOINT,)),
    Page("transplant", "Transplant", ":material/move_up:", (CHECKPOINT,)),
    Page("compare", "Side by side", ":material/compare:", (CHECKPOINT,)),
    Page("pointing_game", "Pointing game", ":material/my_location:", (POINTING_GAME,), tuple(MAPS.values())),
    Page("neurons", "Neurons", ":material/neurology:", (NEURONS,)),
    Page("rank", "Rank", ":material/stacked_line_chart:", (RANK,)),
    Page("trajectories", "Trajectories", ":material/timeline:", (TRAJECTORIES,)),
    Page("recurrence", "Recurrence", ":material/repeat:", (RECURRENCE,)),
    Page("prune", "Pruning", ":material/content_cut:", (PRUNE,), (*CONTROLS.values(), SWAP)),
    Page("ablation", "Ablation", ":material/power_off:", (ABLATION,)),
    Page("attribution", "Attribution", ":material/account_tree:", (ATTRIBUTION,)),
    Page("patching", "Patching", ":material/swap_horiz:", (PATCHING,)),
    Page("intervention", "Intervention", ":material/tune:", (INTERVENTION,)),
    Page("lens", "Lens", ":material/search:", (LENS,)),
    Page("dynamics", "Dynamics", ":material/route:", (DYNAMICS,)),
    Page("factors", "Factors", ":material/biotech:", (FACTORS,)),
    Page("outliers", "Outlier tokens", ":material/grain:", (OUTLIERS,)),
    Page("dictionary", "Dictionary", ":material/dictionary:", (DICTIONARY,)),
    Page("cost", "Cost", ":material/payments:", (COST,)),
    Page("transfer", "Transfer", ":material/moving:", (TRANSFER,)),
    Page("study", "Comparison", ":material/balance:"),
    Page("other", "Other results", ":material/category:"),
)
NEEDED = tuple(dict.fromkeys(result for page in PAGES for result in page.needs))
RESULTS = tuple(dict.fromkeys((*NEEDED, *(result for page in PAGES for result in page.beside))))
