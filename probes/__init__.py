"""One file, one measurement, one command: each watches a model over a data set and gives an ``xarray.Dataset``."""

import sys
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).parents[1]
for name in ("models", "analyses"):
    spec = find_spec(name)
    if spec is None or spec.origin is None or not Path(spec.origin).is_relative_to(HOME):
        complaint = (
            f"{spec.origin if spec else name} is not the toolkit's package {name}: the working directory (or "
            "PYTHONPATH) hides it; start elsewhere, or use the command bvit"
        )
        if sys.argv[:1] == ["-m"]:  # python -m is on its way to a command
            print(complaint, file=sys.stderr)
            raise SystemExit(2)
        raise ImportError(complaint)
