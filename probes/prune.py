"""Which sub-network of the shared block does each step need? Step-specific lottery pruning (figures 5 and 14, app. G).

    python -m probes.prune --steps 30                    # 30 rounds on the embedded data, from a seed
    python -m probes.prune runs/demo --data shapes       # rewinds to that checkpoint's initialisation
    python -m probes.prune --control random              # a control of the rounds that are there
    python -m probes.prune --quick                       # under three minutes, to see it work

Each round trains the whole model from its initialisation, step t under its mask M_t; then trains, for every step, a
graft (the initialisation under M_t, used at that step alone, the rest frozen), and takes from M_t the smallest `rate`
of the graft's weights. Masks overlap whatever the steps do, since all grafts start from one initialisation: so beside
random masks stand replicates of one step, grafted with other data orders (of the first and of the middle step). Costs
about four minutes a round on two cores.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro
from beartype.door import is_bearable
from etils import epy
from tyro.conf import Positional

from models import command
from models.command import Preset
from models.errors import InputError, require
from probes import saving
from probes.methods.plan import Plan

with epy.lazy_imports():
    import xarray as xr

    import models
    from analyses import prune as analysis
    from models import checkpoint, device, origin, run_folder, source
    from models import data as datasets
    from models import train as training
    from probes.methods import rounds

PRESETS = {
    "paper": Preset(
        "the paper's values: 30 rounds, 200 and 100 epochs, rate 0.2",
        dict(plan=Plan(rounds=30, epochs=200.0, graft_epochs=100.0, rate=0.2)),
    ),
    "quick": Preset(
        "two rounds on six steps and little data, to see it work",
        dict(
            plan=Plan(rounds=2, epochs=3.0, graft_epochs=1.0, replicates=2),
            data="shapes-easy:6000",
            fields=("n_steps=6",),
        ),
    ),
}


def measure(
    model: models.BViT, data: Any, *, val: Any, out: Path, plan: Plan | None = None, val_limit: int = 5000
) -> xr.Dataset:
    """Prune an untrained `model` on `data` round by round into the folder `out`, continuing what is there.

    `model` is what every round rewinds to (``load(source, weights="init")`` or a new one); accuracy is on `val`.
    Raises `InputError` for data that cannot be held in memory or classes that differ.
    """
    pruning = rounds.Lottery(model, data, val, plan or Plan(), out, val_limit)
    pruning.play()
    return pruning.result()


# The command


def prune(
    source: Positional[str | None] = None,
    *,
    plan: Annotated[Plan, tyro.conf.arg(name="")] = Plan(),  # noqa: B008
    preset: str = "bvit_easy",
    fields: tuple[str, ...] = (),
    data: str | None = None,
    val_limit: int = 5000,
    control: Literal["random", "shuffled", "shared", "union", "swap"] | None = None,
    at: tuple[int, ...] = (),
    out: Path = Path("runs/prune"),
    figure: Path | None = None,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
) -> None:
    """Step-specific lottery pruning: masks of every round, how they overlap, and the accuracy under them; two nulls.

    Args:
        source: checkpoint to whose initialisation every round rewinds; from --preset and --seed by default.
        plan: the loop.
        preset: model to train from a seed; vit_easy gives a stacked ViT, pruned layer by layer.
        fields: fields of the model's config to override, as name=value.
        data: data spec; shapes-easy:12000 by default, or the checkpoint's own.
        val_limit: images of the validation split that are scored.
        control: of the finished rounds in --out: random, shuffled, shared or union masks, or swap (step t under M_s).
        at: rounds at which the control is run; all of them by default.
        out: folder of the run.
        figure: also draw the result's figure into this .png, .pdf, .svg or .html.
        device: auto, cpu, cuda or mps.
        resume: continue the run in --out; starts if it holds nothing, does nothing if it is finished.
        force: start over in a folder that holds a run.
    """
    options = {
        "source": source,
        "preset": preset,
        "fields": list(fields),
        "data": data,
        "val_limit": val_limit,
        "plan": asdict(plan),
    }
    saving.refuse_undrawable(figure)
    if control is not None and force:
        raise InputError(f"--control {control} measures the rounds that are there, --force removes them; leave one out")
    claim = dict(resume=resume or control is not None, force=force)
    run_folder.refuse_taken(out, **claim)
    if control is None:
        pruning = opened(options, out, device)  # says what is wrong before --force removes anything
    with run_folder.owned(out, **claim):
        refuse_without_rounds(out)
        if control is None:
            keep_options(out, options)
            pruning.play()
            table = analysis.table(pruning.result())
        else:
            pruning = opened(kept_options(out), out, device)
            table = analysis.compared(pruning.control(control, at), pruning.result())
        if pruning.accelerator.is_main_process:
            print(table)
            saving.save_figure(pruning.result(), analysis, figure)


def opened(options: dict[str, Any], out: Path, device_name: str) -> rounds.Lottery:
    """The rounds of a folder: the untrained model, its training data and its validation data."""
    plan, limit = planned(options, out), options["val_limit"]
    require((limit >= 1, f"--val-limit is {limit}, it must be at least 1"))
    if options["source"] is not None:
        model = source.load(options["source"], weights="init")
        spec, config = options["data"] or model.origin.data, model.config
    else:
        spec = options["data"] or "shapes-easy:12000"
        config = models.ViTConfig.preset(options["preset"], **training.parsed(tuple(options["fields"])))
    train_data, val_data = (datasets.open_data(spec, split, like=config) for split in ("train", "val"))
    classes = tuple(datasets.describe(train_data).classes)
    if options["source"] is None:
        config = replace(config, n_classes=len(classes), classes=classes)
        model = checkpoint.fresh(config, plan.seed)
        model.origin = origin.Origin(f"{options['preset']}, seed {plan.seed}", "init", data=spec)
    elif classes != tuple(config.classes or ()):
        raise InputError(f"{spec} has other classes than {options['source']}; pruning trains on them: name the same")
    model = model.to(device.device(device_name))
    return rounds.Lottery(model, train_data, val_data, plan, out, limit)


def planned(options: dict[str, Any], out: Path) -> Plan:
    """The loop that a run's options ask for, whoever wrote them."""
    kinds = dict(source=str | None, preset=str, fields=list[str], data=str | None, val_limit=int)
    wrong = [name for name, kind in kinds.items() if not is_bearable(options.get(name, ...), kind)]
    of_plan = {name: kind | int if kind is float else kind for name, kind in get_type_hints(Plan).items()}
    for name, value in options["plan"].items():
        if name not in of_plan or not is_bearable(value, of_plan[name]):
            wrong.append(name)
    if wrong:
        raise InputError(
            f"{out / 'prune.json'} is damaged: {wrong[0]} is not as pruning noted it; start over with --force"
        )
    return Plan(**options["plan"])


def keep_options(out: Path, options: dict[str, Any]) -> None:
    """Note what a run was started with; refuse to continue it with something else."""
    path = out / "prune.json"
    if path.exists():
        before, now = flat(kept_options(out)), flat(json.loads(json.dumps(options)))
        changed = ", ".join(f"{name}={before.get(name)!r}" for name in now if before.get(name) != now[name])
        if changed:
            advice = "resume it with the same options, or start over with --force"
            raise InputError(f"{out} was started with {changed}; {advice}")
    elif int(os.environ.get("RANK", 0)) == 0:
        with run_folder.atomic(path) as temporary:
            temporary.write_text(json.dumps(options, indent=1))


def flat(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a run and those of its plan in one dict."""
    return {name: value for name, value in options.items() if name != "plan"} | options["plan"]


def refuse_without_rounds(out: Path) -> None:
    """A result that was copied without its rounds can be looked at, but neither continued nor written over."""
    if (out / "prune.nc").exists() and not (out / "rounds").is_dir():
        raise InputError(
            f"{out} holds a pruning result without its rounds; make a run of your own with python -m probes.prune "
            "--out elsewhere, then go on"
        )


def kept_options(out: Path) -> dict[str, Any]:
    """What a run was started with, as `keep_options` noted it."""
    path = out / "prune.json"
    if not path.exists():
        raise InputError(f"{out} holds no pruning run; make one with python -m probes.prune --out {out}")
    try:
        options = json.loads(path.read_bytes())
        if not isinstance(options["plan"], dict):
            raise TypeError
    except (ValueError, TypeError, LookupError, RecursionError, OSError):
        raise InputError(
            f"{path} is damaged: it is no record of a run's options; start over with --force, or choose another --out"
        ) from None
    return options


if __name__ == "__main__":
    command.run(prune, prog="python -m probes.prune", presets=PRESETS)
