"""Run pytest on audit files in a process of its own, undisturbed by the plugins and settings of the folder that it is called from."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mi_audit.config import third_party_allowed


def run_pytest(arguments: Sequence[str], *, root: Path | None = None) -> int:
    """Run pytest with the plugin and nothing else, and return its exit code. Options that the project adds are left out, since they may belong to plugins that
    are; with `root`, no configuration file is read at all."""
    alone = [] if third_party_allowed() else ["--audit-no-plugins"]
    isolated = ["-c", os.devnull, f"--rootdir={root}", "-p", "no:cacheprovider"] if root is not None else []
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-p", "mi_audit.pytest_plugin", "-o", "addopts=", *isolated, *alone, *arguments]
    return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 — our own interpreter with our own arguments
