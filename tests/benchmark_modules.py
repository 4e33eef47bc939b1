"""Modules of examples/benchmarks, which are no package, for tests of what they hold."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"


def benchmark_module(name):
    """The module of that name, loaded once."""
    if str(BENCHMARKS) not in sys.path:
        # They import each other by their bare names.
        sys.path.append(str(BENCHMARKS))
    if name not in sys.modules:
        spec = spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
