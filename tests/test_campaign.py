"""The quick part of `make campaign`: links, and a few damaged files of every kind."""

import subprocess
import sys
from pathlib import Path


def test_nothing_is_lost_crashes_or_reaches_outside() -> None:
    campaign = [sys.executable, str(Path(__file__).with_name("campaign.py")), "--quick"]
    done = subprocess.run(campaign, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n| ") > 16
