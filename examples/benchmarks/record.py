"""The record of a benchmark: its figures, and what they were measured with."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "skbilevel")


def write_record(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures with machine, versions, date and commit as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**circumstances(), **figures}, indent=1))


def circumstances() -> dict[str, Any]:
    """Machine, threads, versions, date and commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "threads": {name: os.environ.get(name, "not set") for name in _THREADS},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{platform.machine()} {platform.processor()}".strip()
