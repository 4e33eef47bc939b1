"""The rules of the architecture that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skbilevel

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "skbilevel"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# What a folder may import of the package; single files at the top are instruments around it.
ALLOWED = {
    "numerics": {"numerics"},
    "models": {"numerics", "models"},
    "objectives": {"numerics", "objectives"},
    "solvers": {"numerics", "solvers"},
    "estimators": {"numerics", "models", "objectives", "solvers", "estimators", "_sklearn"},
}
NUMPY_ONLY = ("amputation", "metrics", "datasets")


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    return names | {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    ours = {name.split(".")[1] for name in imported_modules(path) if name.startswith("skbilevel.")}
    if layer(path) in ALLOWED:
        assert ours <= ALLOWED[layer(path)]
    if layer(path) in NUMPY_ONLY:
        assert ours <= set(NUMPY_ONLY)
        assert "torch" not in imported_modules(path)


def test_scikit_learn_internals_are_named_in_one_file_only():
    for path in SOURCES:
        private = {m for m in imported_modules(path) if re.search(r"sklearn(\.\w+)*\._", m)}
        assert not private or path.name == "_sklearn.py", f"{path}: {private}"


def test_no_global_seed_or_unguarded_thread_count():
    for path in SOURCES:
        text = path.read_text()
        assert not re.search(r"torch\.manual_seed|np\.random\.seed|\bTODO\b|\bFIXME\b", text), path
        assert "set_num_threads" not in text or path.name == "threads.py", path


def test_public_names_are_those_of_the_api_page():
    listed = (ROOT / "docs" / "api" / "index.rst").read_text()
    missing = [name for name in skbilevel.__all__ if name != "__version__" and name not in listed]
    assert not missing


def test_public_names_are_typed_and_resolve():
    stub = (PACKAGE / "__init__.pyi").read_text()
    for name in skbilevel.__all__:
        assert getattr(skbilevel, name) is not None
        assert name in stub
    assert set(skbilevel.__all__) <= set(dir(skbilevel))
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = skbilevel.Missing


def test_import_is_lazy():
    code = (
        "import sys, skbilevel;"
        "heavy = {'torch', 'matplotlib', 'sklearn', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_amputation_metrics_and_datasets_need_no_torch():
    code = (
        "import sys; from skbilevel import amputation, datasets, metrics;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_takes_no_longer_than_that_of_scikit_learn_base():
    def seconds(module):
        code = (
            "import time; start = time.perf_counter();"
            f"import {module}; print(time.perf_counter() - start)"
        )
        runs = [
            subprocess.run([sys.executable, "-c", code], capture_output=True) for _ in range(3)
        ]
        return min(float(run.stdout) for run in runs)

    assert seconds("skbilevel") <= 1.2 * seconds("sklearn.base")
