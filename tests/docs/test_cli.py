"""docs/cli.md is the help of the commands, and the README names each of them."""

from __future__ import annotations

import subprocess
import sys

from scrubjay.cli.main import cli
from tests.docs.markdown import ROOT, codes, tables


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "generate_cli_docs.py"), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_readme_names_every_command() -> None:
    named = [codes(row[0])[0].split()[1] for row in tables(ROOT / "README.md")["Command line"]]
    assert sorted(named) == sorted(cli.commands)
