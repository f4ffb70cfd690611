"""The dashboard: ``make demo``, or ``streamlit run app/main.py -- --runs DIR``."""

import sys
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).parents[1]
for name in ("models", "probes", "analyses"):
    found = find_spec(name)
    if found is None or found.origin is None or not Path(found.origin).is_relative_to(HOME):
        said = (
            f"{found.origin if found else name} is not the toolkit's package {name}: the working directory (or "
            "PYTHONPATH) hides it; start elsewhere, or use the command bvit"
        )
        if sys.argv[:1] == ["-m"]:  # python -m is on its way to a command
            print(said, file=sys.stderr)
            raise SystemExit(2)
        raise ImportError(said)
