"""What every probe stands on: one pass over the data, the untrained control beside, attributes, and its command.

A probe is a function. This is a whole one, with its command, control, result, table and page:

    from etils import epy
    from probes import probe

    with epy.lazy_imports():
        import xarray as xr

    @probe.measurement
    def measure(model, images, *, scale: float = 1.0) -> xr.Dataset:
        \"\"\"How long is the CLS state after each step?

        Args:
            scale: factor on the length.
        \"\"\"
        def lengths(batch):
            _, cache = model.run_with_cache(batch.images, names_filter="blocks.*.hook_resid_post")
            return {"length": (("step", "image"), scale * cache.stack_activation("resid_post")[:, :, 0].norm(dim=-1))}

        return images.over(lengths).mean("image")

    if __name__ == "__main__":
        probe.main(measure)
"""

from __future__ import annotations

import functools
import glob
import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from etils import epy
from tyro.conf import Positional

from models import command
from models.errors import InputError, require
from probes import saving
from probes.walk import Pass, Reading, answering, as_pass, limited, split

with epy.lazy_imports():
    import torch
    import xarray as xr

    import models
    from analyses import draw
    from models import checkpoint, device, origin, run_folder, source
    from models import data as datasets

__all__ = ["Numbers", "Pass", "Reading", "as_pass", "limited", "main", "measurement", "split"]

Measure = Callable[..., "xr.Dataset"]
OF_IMAGES = {"image", "place"}  # dimensions of what is kept of single images

# A measurement


def measurement(
    measure: Measure | None = None,
    *,
    control: Sequence[str] | Callable[[xr.Dataset], xr.Dataset] | None = None,
    lighter: Mapping[str, Any] | None = None,
    needs_data: bool = True,
    file: Callable[..., str] | None = None,
) -> Any:
    """Decorator: a function ``measure(model, images, *, options)`` as a notebook and a command call it.

    `images` may be a plain data set (with ``batch_size``, ``workers``, ``seed`` beside it) or a `Pass`. With
    ``control=untrained`` the untrained model is measured too and set beside, as ``control_*``: the variables named by
    `control` here (or what a function makes of its result; by default all that are not of single images; () for none),
    with the options in `lighter` in place of those asked for. A probe that needs no data, only a model, says so; one
    whose options measure different things names its file after them (`file` of the options, without suffix). The result
    says where it comes from.
    """
    if measure is None:
        return functools.partial(measurement, control=control, lighter=lighter, needs_data=needs_data, file=file)
    beside = functools.partial(as_control, kept=control)

    @functools.wraps(measure)
    def measured(
        model: models.BViT,
        images: Any,
        /,
        *,
        control: models.BViT | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> xr.Dataset:
        started = time.time()
        images = as_pass(images, batch_size=batch_size, workers=workers, seed=seed)
        refuse_unmeasurable(model)
        with answering(model):
            label = images.label or name_of(measure).replace("_", " ")
            result = measure(model, replace(images, label=label), **options)
        if control is not None:
            control, images = control.to(model.pos_embed.device), replace(images, label="untrained control")
            with answering(control):
                result = result.assign(beside(measure(control, images, **options | dict(lighter or {}))))
        return result.assign_attrs(attributes(model, images, started=started))

    measured.is_measurement = True  # type: ignore[attr-defined]
    measured.needs_data, measured.has_control = needs_data, control != ()  # type: ignore[attr-defined]
    measured.file = file or (lambda **options: name_of(measure))  # type: ignore[attr-defined]
    return measured


def as_control(result: xr.Dataset, *, kept: Sequence[str] | Callable[[xr.Dataset], xr.Dataset] | None) -> xr.Dataset:
    """The untrained model's numbers under the names that `analyses.style.models` reads."""
    if kept is None:
        kept = [name for name, values in result.data_vars.items() if not OF_IMAGES & {*values.dims}]
    part = kept(result) if callable(kept) else result[list(kept)]
    return part.rename({name: f"control_{name}" for name in part.data_vars})


def attributes(model: models.BViT, images: Pass, *, started: float) -> dict[str, Any]:
    """What a result says of where it comes from; plain strings and numbers, no absolute path."""
    provenance = origin.provenance(images.seed)
    return {
        "source": origin.relative(model.origin.source),
        "weights": model.origin.weights,
        "checkpoint_sha256": model.origin.sha256 or checkpoint.state_sha256(model.state_dict()),
        "config": json.dumps(model.trained.to_dict()),
        **({} if images.data is None else of_data(images)),
        "seed": images.seed,
        "command": provenance["command"],
        "versions": json.dumps(provenance["versions"]),
        "machine": provenance["machine"],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.time() - started, 1),
    }


def of_data(images: Pass) -> dict[str, Any]:
    """Which images a result was measured on."""
    about = images.about
    return {
        "data": origin.relative(about.spec),
        "split": about.split,
        "data_fingerprint": about.fingerprint,
        "n_images": len(images),
    }


def note_on(n_images: int) -> str:
    """The `note` of a result of few images, whose intervals are wide; empty from 100 images on."""
    return "" if n_images >= 100 else f"only {n_images} images: read the intervals"


def refuse_unmeasurable(model: models.BViT) -> None:
    """`InputError` for a model that is not in float32, or whose weights are not finite."""
    complaint = f"what is measured is a model, not a {type(model).__name__}; open one with models.load"
    require((isinstance(model, models.BViT), complaint))
    dtype = model.pos_embed.dtype
    require((dtype == torch.float32, f"the model holds {dtype}, a probe measures in float32; call model.float() first"))
    for name, value in model.named_parameters():
        if not value.isfinite().all():
            raise InputError(f"activations are not finite {first_use(name, model)}: {name} is not; {DIVERGED}")


def first_use(parameter: str, model: models.BViT) -> str:
    """Where in a run a parameter is first used, in words."""
    if parameter.startswith(("head.", "norm.")):
        return "in the read-out"
    block = re.match(r"core\.(\d+)\.", parameter)
    if block is None:
        return "from the embedding on"
    config = model.config
    return from_step(next(t for t in range(config.n_steps) if config.block_of(t) == int(block[1])))


DIVERGED = "the checkpoint diverged, use an earlier one"


def from_step(step: int) -> str:
    return f"from step {step + 1} (blocks.{step}) on"


def refuse_nonfinite(per_step: torch.Tensor) -> None:
    """Stop with the first step whose number is NaN or infinite: [step]."""
    bad = (~per_step.isfinite()).nonzero()
    if len(bad):
        raise InputError(f"activations are not finite {from_step(int(bad[0]))}; {DIVERGED}")


# The command


@dataclass(frozen=True)
class Common:
    """The options every probe has."""

    source: Positional[str]
    """Model: run folder, ckpt.pt, timm:NAME, timm:NAME@FILE or hf:REPO."""
    data: str | None = None
    """Data spec (shapes, folder:PATH, imagenet-s:PATH, voc:PATH, boxes:PATH, ...); the checkpoint's own by default."""
    split: str = "val"
    """Split of the data."""
    limit: int | None = None
    """At most this many images, spread evenly over the split."""
    out: Path | None = None
    """Result file; <run>/<probe>.nc by default."""
    figure: Path | None = None
    """Also draw the result's figure into this .png, .pdf, .svg or .html."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    batch_size: int = 64
    """Images per forward pass."""
    workers: int = 0
    """Processes that load images."""
    seed: int = 0
    """Of everything random in the measurement."""
    weights: Literal["ema", "raw", "init"] = "ema"
    """Which weights of the checkpoint; init is the untrained control."""
    image_size: int | None = None
    """Resample the position embedding for images of this side, a multiple of the patch; the model's own by default."""
    control: bool = True
    """Also measure the untrained model (same config and seed), where the checkpoint can rebuild it."""


def numbers(text: str) -> list[int] | None:
    """The numbers of a list such as 3,17; None for all."""
    if text in ("all", "None"):
        return None
    if not all(part.strip().isascii() and part.strip().isdecimal() for part in text.split(",")):
        raise InputError(f"{text!r} is no list of numbers; write them from 0 with commas between, as in 3,17, or all")
    return [int(part) for part in text.split(",")]


# An option that is a list of numbers for a notebook, and 3,17 or all on a command line
Numbers = Annotated[
    Sequence[int] | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N,N,...",
        instance_from_str=lambda words: numbers(words[0]),
        is_instance=lambda value: value is None or isinstance(value, list | tuple),
        str_from_instance=lambda value: ["all" if value is None else ",".join(map(str, value))],
    ),
]


def main(measure: Measure, *, presets: command.Presets | None = None) -> None:
    """The command of a probe: its options are the keyword arguments of `measure`, its help is `measure`'s docstring."""
    spec = sys.modules["__main__"].__spec__
    prog = f"python -m {spec.name}" if spec and spec.name != "__main__" else f"python {sys.argv[0]}"
    command.run(as_command(measure), prog, presets)


def as_command(measure: Measure) -> Callable[..., None]:
    """`measure` as tyro takes it: the common options, then its own."""
    if not hasattr(measure, "is_measurement"):
        measure = measurement(measure)

    def call(common: Common, **options: Any) -> None:
        answer(measure, common, options)

    common = inspect.Parameter(
        "common", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[Common, tyro.conf.arg(name="")]
    )
    parameters = [common, *own_options(measure)]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__doc__ = inspect.getdoc(measure)
    return call


def own_options(measure: Measure) -> list[inspect.Parameter]:
    """The keyword-only parameters of a measurement that a command line can give, annotations resolved one by one.

    Those of the model and the data stay as they are written, so that asking for help imports nothing heavy. A parameter
    whose name starts with an underscore is for callers from Python alone.
    """
    function, options = inspect.unwrap(measure), []
    for option in inspect.signature(function).parameters.values():
        if option.kind is option.KEYWORD_ONLY and not option.name.startswith("_"):
            annotation = option.annotation
            if isinstance(annotation, str):
                annotation = eval(annotation, function.__globals__)  # as typing.get_type_hints does
            options.append(option.replace(annotation=annotation))
    return options


def answer(measure: Measure, common: Common, options: dict[str, Any]) -> None:
    """Everything a probe's command does: open, measure, save, print, draw."""
    name = name_of(measure)
    analysis = draw.of(name)
    saving.refuse_undrawable(common.figure)
    model = source.load(common.source, common.weights, common.image_size).to(device.device(common.device))
    out = common.out or run_folder.result(model.origin.run, measure.file(**options))
    require((0 <= common.seed < 2**32, f"--seed is {common.seed}, it must lie between 0 and {2**32 - 1}"))
    saving.refuse_unwritable(out, common.figure)
    if common.out is None:
        saving.refuse_other_result(model, out)
    data = open_images(common, model) if measure.needs_data else None
    images = Pass(data, common.batch_size, common.workers, common.seed, out=out)
    wants_control = measure.has_control and common.control and common.weights != "init"
    control = untrained_of(common) if wants_control else None
    result = measure(model, images, control=control, **options)
    if images.is_main:
        saving.save(result, out)
        for unfinished in out.parent.glob(f"{glob.escape(out.name)}.*.partial"):
            unfinished.unlink()
        if result.attrs.get("note"):
            print(f"note: {result.attrs['note']}", file=sys.stderr)
        print(analysis.table(result))
        saving.save_figure(result, analysis, common.figure)


def name_of(measure: Measure) -> str:
    """A probe is named after its file."""
    return Path(inspect.getfile(inspect.unwrap(measure))).stem


def open_images(common: Common, model: models.BViT) -> Any:
    """The data set, at most `limit` images of it."""
    spec = model.origin.data if common.data is None else common.data
    if spec is None:
        raise InputError(f"{common.source} does not say which data it was trained on; name some with --data")
    return limited(datasets.open_data(spec, common.split, like=model), common.limit)


def untrained_of(common: Common) -> models.BViT | None:
    """The untrained control; None, with a message on standard error, where it cannot be rebuilt."""
    try:
        return source.load(common.source, "init", common.image_size)
    except InputError as error:
        print(f"no untrained control: {error}", file=sys.stderr)
        return None
