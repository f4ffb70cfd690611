"""A run as a folder that is a repository: weights, config, card, checkpoint, results and figures; and onto the hub.

python -m models.share runs/demo --out shared                  # the folder alone
python -m models.share runs/demo --out shared --push me/bvit   # and uploaded, with the login of `hf auth login`
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from etils import epy
from tyro.conf import Positional

from models import command
from models.errors import InputError, brief, require

with epy.lazy_imports():
    import huggingface_hub
    from huggingface_hub import utils as hub_utils

    from models import run_folder, source

FIGURES = "## Figures\n\n{}\n\nAll of them, with chance levels and intervals, are in `report.html`.\n"
NO_FIGURES = "## Figures\n\n`python -m analyses.report RUN` draws what was measured.\n"


def share(run: Positional[Path], *, out: Path, push: str | None = None) -> None:
    """Lay a run out as a repository of the Hugging Face hub, and upload it if asked to.

    Args:
        run: the run's folder, with its ckpt.pt; results (.nc) and report/ in it go along.
        out: folder to write; one that is not empty is refused.
        push: repository to upload it to, as OWNER/NAME.
    """
    require(
        (run.is_dir(), f"{run} is no folder of a run; name the one that holds its ckpt.pt"),
        (not (out.exists() and (not out.is_dir() or any(out.iterdir()))), f"{out} is not empty; choose another --out"),
    )
    run_folder.refuse_unwritable(out)
    if push is not None:
        refuse_name(push)
    laid_out(run, out)
    print(f"wrote {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    if push is not None:
        uploaded(out, push)


def laid_out(run: Path, out: Path) -> None:
    """Everything that the repository holds, under its names there."""
    model = source.load(source.file_of(run))
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    copied = [
        run_folder.checkpoint(run),
        run_folder.log(run),
        *sorted(run.glob("*.nc")),
        run / "report" / "report.html",
    ]
    for path in copied:
        if is_own(path, run):
            shutil.copyfile(path, out / path.name)
    figures = sorted(path for path in (run / "report" / "figures").glob("fig-*.png") if is_own(path, run))
    for path in figures:
        (out / "figures").mkdir(exist_ok=True)
        shutil.copyfile(path, out / "figures" / path.name)
    shown = "\n".join(f"![{path.stem.replace('-', ' ')}](figures/{path.name})" for path in figures)
    card = out / "README.md"
    text = card.read_text(encoding="utf-8") + "\n" + (FIGURES.format(shown) if figures else NO_FIGURES)
    card.write_text(text, encoding="utf-8")


def is_own(path: Path, run: Path) -> bool:
    """Whether it is a file of the run's, under a name that a card can hold, and no link: what lies elsewhere is not
    given away.
    """
    is_plain = re.fullmatch(r"[\w.,=+-]+", path.name) is not None
    return is_plain and path.is_file() and not run_folder.is_outside(path, run)


def refuse_name(repo: str) -> None:
    """A repository that the hub would not take by its name."""
    try:
        hub_utils.validate_repo_id(repo)
    except ValueError as error:
        raise InputError(f"--push: {brief(error)}") from None


def uploaded(folder: Path, repo: str) -> None:
    """The folder as a repository's next commit."""
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repo, exist_ok=True)
        said = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Shared with bvit-toolkit")
    except Exception as error:  # the hub's errors have no common class
        raise InputError(
            f"{repo} could not be written ({type(error).__name__}: {brief(error)}); the folder {folder} is complete: "
            "log in with hf auth login and try again, or upload it by hand"
        ) from None
    print(f"uploaded to {said.commit_url}")


if __name__ == "__main__":
    command.run(share, "python -m models.share")
