"""Run once more, alone, the few tests that have just failed in a full run.

Thousands of tests with real servers share the machine in a full run, and a machine that stands still for a moment can
fail one that waits. A defect fails again alone. Each test that passes only now is named, so that it is mended. There is
no second look where more than a few have failed, nor for tests that judge what long random runs have read or laid out:
what these find once is found.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FAILED = Path(".pytest_cache/v/cache/lastfailed")
MOST = 3
JUDGES = ("tests/testing/test_chaos.py", "tests/fuzz/", "tests/model/")


def main() -> int:
    """Return the exit code."""
    failed = sorted(json.loads(FAILED.read_text())) if FAILED.exists() else []
    judged = [name for name in failed if name.startswith(JUDGES)]
    if not failed or judged or len(failed) > MOST:
        print(f"no second look: {len(failed)} tests failed, {len(judged)} of them judge long runs")
        return 1
    print("a second look, alone, at:", *failed, sep="\n  ", flush=True)
    code = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *failed], check=False).returncode
    if code == 0:
        print("FLAKY, to be mended; passed only alone:", *failed, sep="\n  ")
        FAILED.unlink()
    return code


if __name__ == "__main__":
    sys.exit(main())
