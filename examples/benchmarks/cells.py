"""Cells of tables, kept in a file: a run that is started again goes on where it was."""

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


class Cells:
    """Measured cells, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.measured: dict[str, Cell] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, key: str, run: Callable[[], Cell]) -> Cell:
        """The cell of that key, measured unless it has been."""
        if key not in self.measured:
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.measured[key] = run()
            self.measured[key]["seconds"] = round(time.process_time() - start, 2)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.measured, indent=0))
            print(key, self.measured[key], flush=True)
        return self.measured[key]
