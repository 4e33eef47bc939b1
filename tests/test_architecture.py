"""The rules of the architecture that a machine can check.

A rule is a function of the text of a module and its dotted name that returns what breaks it. Each
is shown to catch the ways around it before the package is put to it.
"""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import skbilevel

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "skbilevel"
SOURCES = sorted(PACKAGE.rglob("*.py"))
API = ROOT / "docs" / "api" / "index.rst"

# What a layer, a folder or a file at the top, may import of the package.
NUMPY_ONLY = {"amputation", "datasets", "metrics", "tables"}
ALLOWED = {
    "numerics": {"numerics"},
    "models": {"numerics", "models"},
    "objectives": {"numerics", "objectives"},
    "solvers": {"numerics", "solvers"},
    "estimators": {"numerics", "models", "objectives", "solvers", "estimators", "_sklearn"},
    **dict.fromkeys(NUMPY_ONLY, NUMPY_ONLY),
    "_sklearn": set(),
    "imputer_checks": NUMPY_ONLY,
    "model_selection": set(),
    "testing": {"", "__all__", "imputer_checks"},
    "io": {"", "__version__"},
    "__init__": set(),
}
TORCH_ONLY = {"numerics", "models", "objectives", "solvers"}
TORCH_FREE = NUMPY_ONLY | {
    "_sklearn",
    "imputer_checks",
    "io",
    "model_selection",
    "testing",
    "__init__",
}
GENERATORS = (
    "numpy.random",
    "random",
    "scipy.stats",
    "secrets",
    "skbilevel.numerics.random",
    "torch.Generator",
    "torch.distributions",
    "torch.nn.init",
)
ROOT_MODULE = "skbilevel.__init__"
OPTIONAL = {"matplotlib", "pandas", "polars", "rich", "skops"}
# Where import_module may be given a name that is not written out.
DYNAMIC = {ROOT_MODULE, "skbilevel.imputer_checks"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
VAGUE = {"base", "common", "helper", "helpers", "misc", "util", "utils"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def layer(module: str) -> str:
    """``a`` of ``skbilevel.a.b``, and nothing of ``skbilevel`` alone."""
    return module.partition(".")[2].partition(".")[0]


# Names that a text uses, in full


def imports(node: ast.AST, module: str) -> dict[str, str]:
    """Local name -> full name of what one import statement, or import_module, brings.

    "?" stands for a name that import_module is given by a variable.
    """
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name: alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        parents = module.split(".")[: -node.level] if node.level else []
        origin = ".".join([*parents, *filter(None, [node.module])])
        return {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
    if isinstance(node, ast.Call) and dotted(node.func).endswith(("import_module", "__import__")):
        name = node.args[0] if node.args else None
        return {"": name.value if isinstance(name, ast.Constant) else "?"}
    return {}


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute of an attribute of a name; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def names(source: str, module: str) -> set[str]:
    """Full names of all that is imported, or reached as an attribute of an import."""
    nodes = list(ast.walk(ast.parse(source)))
    found = [imports(node, module) for node in nodes]
    known = {local: full for each in found for local, full in each.items()}
    known |= {full.split(".")[0]: full.split(".")[0] for full in known if "." in full}
    reached = set()
    for chain in filter(None, map(dotted, nodes)):
        head, _, tail = chain.partition(".")
        if tail and head in known:
            reached.add(f"{known[head]}.{tail}")
    return reached | {full for each in found for full in each.values()}


def below(names: set[str], *roots: str) -> set[str]:
    """Those names that are one of the roots, or inside of one."""
    return {name for name in names if f"{name}.".startswith(tuple(f"{root}." for root in roots))}


# Rules: what breaks them


def imports_against_the_layers(source: str, module: str) -> set[str]:
    ours = below(names(source, module), "skbilevel")
    return {name for name in ours if layer(name) not in ALLOWED[layer(module)]}


def libraries_of_another_layer(source: str, module: str) -> set[str]:
    """Torch above the tensors; scikit-learn and data frames below the arrays; unknown imports."""
    forbidden = set() if module in DYNAMIC else {"?", "importlib"}
    if layer(module) in TORCH_FREE:
        forbidden |= {"torch", "functorch"}
    if layer(module) in TORCH_ONLY:
        forbidden |= {"sklearn", "pandas", "polars"}
    if module == ROOT_MODULE:
        forbidden |= {"torch", "numpy", "scipy", "sklearn", "matplotlib"}
    return below(names(source, module), *forbidden)


def moving_names_of_scikit_learn(source: str, module: str) -> set[str]:
    if module == "skbilevel._sklearn":
        return set()
    used = below(names(source, module), "sklearn")
    private = {name for name in used if re.search(r"\._(?!_)", name)}
    return private | below(used, "sklearn.callback")


def hidden_imports(source: str, module: str) -> set[str]:
    """Imports inside a function, optional packages aside; and those outside of one."""
    if module == ROOT_MODULE:
        return set()
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    return {
        name
        for node in ast.walk(tree)
        for name in imports(node, module).values()
        if (id(node) in inside) != (name.split(".")[0] in OPTIONAL | {"?"})
    }


def random_draws(source: str, module: str) -> set[str]:
    """In objectives: generators, and tensors that fill themselves."""
    if layer(module) != "objectives":
        return set()
    generators = below(names(source, module), *GENERATORS)
    draws = r"(\brand|\bnormal$|bernoulli|multinomial|poisson|dropout|manual_seed)\w*$"
    functions = {name for name in below(names(source, module), "torch") if re.search(draws, name)}
    filling = r"\.(normal|uniform|random|bernoulli|exponential|cauchy|geometric|log_normal)_$"
    chains = {f"*.{node.attr}" for node in attributes(source)}
    return generators | functions | {chain for chain in chains if re.search(filling, chain)}


def attributes(source: str) -> Iterator[ast.Attribute]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))


def global_state(source: str, module: str) -> set[str]:
    """Seeds and draws of a generator that all share; thread counts outside of their guard."""
    used = names(source, module)
    local = {"RandomState", "Generator", "default_rng", "SeedSequence"}
    drawn = {name for name in used if re.match(r"numpy\.random\.\w", name)}
    drawn = {name for name in drawn if name.split(".")[2] not in local}
    seeded = {name for name in below(used, "torch") if re.search(r"manual_seed|\.seed$", name)}
    defaults = {name for name in below(used, "torch") if "set_default" in name}
    threads = set(re.findall(r"set_num\w*_threads", source))
    guard = module == "skbilevel.numerics.threads"
    return drawn | seeded | defaults | below(used, "random") | (set() if guard else threads)


def unfinished(source: str, module: str) -> set[str]:
    return set(re.findall(r"\b(?:TODO|FIXME|XXX)\b", source))


def vague_names(source: str, module: str) -> set[str]:
    return {part for part in module.split(".") if part.strip("_") in VAGUE}


def undocumented(source: str, module: str) -> set[str]:
    """The module, its public classes and functions, and their public methods of their own."""
    return set(_undocumented(ast.parse(source), module))


def _undocumented(node, name: str) -> Iterator[str]:
    if not ast.get_docstring(node):
        yield name
    for child in node.body if not isinstance(node, FUNCTIONS) else []:
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)) and not child.name.startswith("_"):
            yield from _undocumented(child, f"{name}.{child.name}")


RULES = [
    imports_against_the_layers,
    libraries_of_another_layer,
    moving_names_of_scikit_learn,
    hidden_imports,
    random_draws,
    global_state,
    unfinished,
    vague_names,
    undocumented,
]

# Rules can fail

PLANTED = [
    (imports_against_the_layers, "numerics.x", "import skbilevel"),
    (imports_against_the_layers, "numerics.x", "import skbilevel.solvers.em as em"),
    (imports_against_the_layers, "numerics.x", "from skbilevel import solvers"),
    (imports_against_the_layers, "numerics.x", "from skbilevel import GaussianImputer"),
    (imports_against_the_layers, "numerics.x", "from skbilevel import *"),
    (imports_against_the_layers, "numerics.x", "from skbilevel.objectives import normal"),
    (imports_against_the_layers, "numerics.x", "from .. import objectives"),
    (imports_against_the_layers, "numerics.x", "from ..objectives import normal"),
    (imports_against_the_layers, "numerics.x", "from ..objectives.normal import LOG_2PI"),
    (imports_against_the_layers, "numerics.x", "def f():\n    from ..solvers import em"),
    (imports_against_the_layers, "numerics.x", "def f():\n    import_module('skbilevel.io')"),
    (imports_against_the_layers, "numerics.x", "importlib.import_module('skbilevel.io')"),
    (imports_against_the_layers, "numerics.x", "__import__('skbilevel.solvers')"),
    (imports_against_the_layers, "numerics.x", "if TYPE_CHECKING:\n    import skbilevel.solvers"),
    (
        imports_against_the_layers,
        "solvers.x",
        "import skbilevel.numerics.random\nskbilevel.estimators.gaussian",
    ),
    (imports_against_the_layers, "solvers.x", "from skbilevel.objectives.normal import LOG_2PI"),
    (imports_against_the_layers, "solvers.x", "from skbilevel.models import mlp"),
    (imports_against_the_layers, "solvers.x", "from skbilevel._sklearn import FitLoop"),
    (imports_against_the_layers, "objectives.x", "from skbilevel.solvers.em import EMResult"),
    (imports_against_the_layers, "objectives.x", "from skbilevel.models import mlp"),
    (imports_against_the_layers, "models.x", "from ..objectives.normal import LOG_2PI"),
    (imports_against_the_layers, "models.x", "from ..solvers.em import EMResult"),
    (imports_against_the_layers, "estimators.x", "from skbilevel import testing"),
    (imports_against_the_layers, "estimators.x", "from ..metrics import entropy"),
    (imports_against_the_layers, "metrics.x", "from skbilevel.numerics import random"),
    (imports_against_the_layers, "metrics.__init__", "from ..numerics import random"),
    (imports_against_the_layers, "amputation", "from .estimators import gaussian"),
    (imports_against_the_layers, "datasets", "from . import GaussianImputer"),
    (imports_against_the_layers, "imputer_checks", "from .estimators.imputer import Imputer"),
    (libraries_of_another_layer, "amputation", "import torch"),
    (libraries_of_another_layer, "amputation", "import torch.nn"),
    (libraries_of_another_layer, "amputation", "import torch.nn as nn"),
    (libraries_of_another_layer, "datasets", "from torch import Tensor"),
    (libraries_of_another_layer, "metrics.x", "from torch.nn import functional"),
    (libraries_of_another_layer, "metrics.x", "def f():\n    import torch"),
    (libraries_of_another_layer, "metrics.x", "import_module(name)"),
    (libraries_of_another_layer, "metrics.x", "from importlib import import_module as load"),
    (libraries_of_another_layer, "imputer_checks", "import torch"),
    (libraries_of_another_layer, "solvers.x", "from sklearn.base import clone"),
    (libraries_of_another_layer, "objectives.x", "import pandas as pd"),
    (libraries_of_another_layer, "__init__", "import numpy as np"),
    (moving_names_of_scikit_learn, "metrics.x", "from sklearn.utils._missing import is_nan"),
    (moving_names_of_scikit_learn, "metrics.x", "from sklearn.utils import _missing"),
    (moving_names_of_scikit_learn, "metrics.x", "from sklearn.base import _fit_context"),
    (moving_names_of_scikit_learn, "metrics.x", "import sklearn.utils._missing as missing"),
    (moving_names_of_scikit_learn, "metrics.x", "import sklearn.base\nsklearn.base._fit_context"),
    (moving_names_of_scikit_learn, "metrics.x", "from sklearn import base as b\nb._fit_context()"),
    (moving_names_of_scikit_learn, "estimators.x", "import sklearn.callback"),
    (moving_names_of_scikit_learn, "estimators.x", "from sklearn import callback"),
    (moving_names_of_scikit_learn, "estimators.x", "from sklearn.callback import ProgressBar"),
    (moving_names_of_scikit_learn, "estimators._sklearn", "from sklearn.base import _fit_context"),
    (hidden_imports, "solvers.x", "def f():\n    import math"),
    (hidden_imports, "solvers.x", "async def f():\n    from torch import nn"),
    (hidden_imports, "solvers.x", "f = lambda: __import__('math')"),
    (hidden_imports, "solvers.x", "class A:\n    def f(self):\n        from . import em"),
    (hidden_imports, "solvers.x", "def f():\n    if True:\n        import_module('torch')"),
    (hidden_imports, "imputer_checks", "import_module(package)"),
    (hidden_imports, "io", "import skops.io"),
    (hidden_imports, "testing", "from matplotlib import pyplot"),
    (hidden_imports, "testing", "try:\n    import pandas\nexcept ImportError: ..."),
    (random_draws, "objectives.x", "import numpy as np\nnp.random.normal()"),
    (random_draws, "objectives.x", "import numpy as np\nnp.random.default_rng(0)"),
    (random_draws, "objectives.x", "from numpy.random import default_rng"),
    (random_draws, "objectives.x", "import torch as t\nt.randn(3)"),
    (random_draws, "objectives.x", "import torch\ntorch.rand_like(x)"),
    (random_draws, "objectives.x", "from torch import randn"),
    (random_draws, "objectives.x", "import torch\ntorch.normal(0, 1, (3,))"),
    (random_draws, "objectives.x", "import torch\ntorch.nn.functional.dropout(x)"),
    (random_draws, "objectives.x", "from torch.nn.functional import dropout"),
    (random_draws, "objectives.x", "import torch\nx = torch.zeros(3).normal_()"),
    (random_draws, "objectives.x", "def f(x):\n    return x.uniform_(0, 1)"),
    (random_draws, "objectives.x", "from torch.distributions import Normal"),
    (random_draws, "objectives.x", "import random"),
    (random_draws, "objectives.x", "from skbilevel.numerics.random import row_normal"),
    (random_draws, "objectives.x", "from ..numerics import random"),
    (global_state, "solvers.x", "import torch\ntorch.manual_seed(0)"),
    (global_state, "solvers.x", "from torch import manual_seed as seed"),
    (global_state, "solvers.x", "import torch\ntorch.cuda.manual_seed_all(0)"),
    (global_state, "solvers.x", "import torch\ntorch.set_default_dtype(torch.float64)"),
    (global_state, "datasets", "import numpy as np\nnp.random.seed(0)"),
    (global_state, "datasets", "import numpy as np\nnp.random.normal(3)"),
    (global_state, "datasets", "from numpy import random\nrandom.shuffle([1])"),
    (global_state, "datasets", "import numpy.random as npr\nnpr.rand()"),
    (global_state, "datasets", "import random\nrandom.seed(0)"),
    (global_state, "solvers.threads", "import torch\ntorch.set_num_threads(1)"),
    (global_state, "solvers.x", "import torch\ngetattr(torch, 'set_num_interop_threads')(1)"),
    (unfinished, "solvers.x", "x = 1  # TODO: later"),
    (unfinished, "solvers.x", "'''FIXME'''"),
    (vague_names, "solvers.utils", ""),
    (vague_names, "solvers._helpers", ""),
    (vague_names, "common.loss", ""),
    (vague_names, "base", ""),
    (vague_names, "solvers.misc", ""),
    (undocumented, "solvers.x", "x = 1"),
    (undocumented, "solvers.x", "'''Noun.'''\ndef f(): ..."),
    (undocumented, "solvers.x", "'''Noun.'''\nclass A:\n    x: int"),
    (undocumented, "solvers.x", "'''Noun.'''\nclass A:\n    '''A.'''\n    def f(self): ..."),
]
INNOCENT = [
    (imports_against_the_layers, "solvers.x", "from skbilevel.numerics.random import draw_seed"),
    (imports_against_the_layers, "solvers.x", "from ..numerics.random import draw_seed"),
    (imports_against_the_layers, "solvers.x", "from . import em"),
    (imports_against_the_layers, "solvers.x", "from skbilevel_tools import solvers"),
    (imports_against_the_layers, "estimators.x", "from skbilevel._sklearn import FitLoop"),
    (imports_against_the_layers, "metrics.__init__", "from .weights import entropy"),
    (libraries_of_another_layer, "metrics.x", "from torchlight import torch"),
    (libraries_of_another_layer, "estimators.x", "import torch\nimport sklearn"),
    (libraries_of_another_layer, "imputer_checks", "def f(package):\n    import_module(package)"),
    (moving_names_of_scikit_learn, "_sklearn", "from sklearn.base import _fit_context"),
    (moving_names_of_scikit_learn, "metrics.x", "import sklearn\nsklearn.__version__"),
    (hidden_imports, "solvers.x", "import math\nif math:\n    import torch"),
    (hidden_imports, "io", "def f():\n    import skops.io"),
    (hidden_imports, "imputer_checks", "def f():\n    return import_module('pandas')"),
    (random_draws, "estimators.x", "import torch\ntorch.randn(3)"),
    (random_draws, "objectives.x", "from skbilevel.objectives.normal import LOG_2PI"),
    (random_draws, "objectives.x", "import torch\ntorch.linalg.cholesky(x)"),
    (global_state, "datasets", "import numpy as np\nnp.random.RandomState(0).normal()"),
    (global_state, "numerics.threads", "import torch\ntorch.set_num_threads(1)"),
    (vague_names, "solvers.baseline", ""),
    (undocumented, "solvers.x", "'''Noun.'''\ndef _f(): ..."),
    (undocumented, "solvers.x", "'''Noun.'''\ndef f():\n    '''F.'''\n    def g(): ..."),
]


def identity(value) -> str:
    return value.__name__ if callable(value) else repr(value).strip("'\"")


def broken(rule, layer_and_file: str, source: str) -> set[str]:
    return rule(source, f"skbilevel.{layer_and_file}")


@pytest.mark.parametrize(("rule", "module", "source"), PLANTED, ids=identity)
def test_rule_catches_what_breaks_it(rule, module, source):
    assert broken(rule, module, source)


@pytest.mark.parametrize(("rule", "module", "source"), INNOCENT, ids=identity)
def test_rule_lets_pass_what_keeps_it(rule, module, source):
    assert broken(rule, module, source) == set()


# The package keeps them


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.parametrize("rule", RULES, ids=identity)
def test_module_keeps_the_rule(rule, path):
    assert rule(path.read_text(), module_name(path)) == set()


def test_every_layer_has_its_rule():
    assert {layer(module_name(path)) for path in SOURCES} | {"models"} == set(ALLOWED)
    assert TORCH_ONLY | TORCH_FREE | {"estimators"} == set(ALLOWED)


def test_no_file_or_test_has_a_vague_name():
    files = [*PACKAGE.rglob("*.py*"), *(ROOT / "tests").rglob("*.py")]
    stems = {part for path in files for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not {stem for stem in stems if stem.strip("_").removeprefix("test_") in VAGUE}


# Public names


def listed_on(page: str) -> set[str]:
    """Entries of the autosummary directives of a page in reStructuredText."""
    blocks = re.findall(r"^\.\. autosummary::\n((?:[ ]+.*\n|\n)*)", page, re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return {line for line in lines if line and not line.startswith(":")}


def typed_in(stub: str) -> tuple[list[str], list[str]]:
    """The names in ``__all__`` of a stub, and those that it declares."""
    public, declared = [], []
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom):
            # Only ``import a as a`` makes a name public in a stub.
            declared += [alias.asname for alias in node.names if alias.asname]
        if isinstance(node, ast.AnnAssign):
            declared.append(dotted(node.target))
        if isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__":
            public = ast.literal_eval(node.value)
    return public, declared


def public_modules():
    items = ((name, getattr(skbilevel, name)) for name in skbilevel.__all__)
    return {name: item for name, item in items if inspect.ismodule(item)}


def test_entries_of_a_page_are_those_of_its_autosummaries_only():
    page = "io\n==\n\n.. autosummary::\n   :nosignatures:\n\n   a\n   b.c\n\nText io.\n\n   d\n"
    assert listed_on(page) == {"a", "b.c"}


def test_public_names_are_those_of_the_api_page():
    listed = {name for name in listed_on(API.read_text()) if "." not in name}
    assert listed == set(skbilevel.__all__) - {"__version__"}


def test_functions_of_public_modules_are_those_of_the_api_page():
    listed = {name for name in listed_on(API.read_text()) if "." in name}
    public = {
        f"{name}.{item}": getattr(module, item)
        for name, module in public_modules().items()
        for item in module.__all__
    }
    assert listed <= set(public)
    assert {name for name, item in public.items() if inspect.isfunction(item)} <= listed


def test_public_names_are_those_of_the_stub():
    public, declared = typed_in((PACKAGE / "__init__.pyi").read_text())
    assert sorted(public) == sorted(declared) == sorted(skbilevel.__all__)


def test_public_names_are_unique_and_resolve():
    assert len(skbilevel.__all__) == len(set(skbilevel.__all__))
    assert dir(skbilevel) == sorted(skbilevel.__all__)
    for name in skbilevel.__all__:
        assert getattr(skbilevel, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = skbilevel.Missing


def test_names_of_a_public_module_resolve():
    for module in public_modules().values():
        assert len(module.__all__) == len(set(module.__all__))
        assert all(hasattr(module, name) for name in module.__all__)


def without_example(items: dict[str, object]) -> set[str]:
    """Names of those classes and functions whose docstring has no numpydoc section Examples."""
    section = re.compile(r"^Examples\n-{8}$(?s:.*)>>> ", re.MULTILINE)
    return {
        name
        for name, item in items.items()
        if (inspect.isclass(item) or inspect.isfunction(item))
        and not section.search(inspect.getdoc(item) or "")
    }


def test_example_is_a_section_with_code():
    def none():
        """Examples are >>> few."""

    def empty():
        """Title.

        Examples
        --------
        There are none.
        """

    def one():
        """Title.

        Examples
        --------
        >>> 1 + 1
        2
        """

    assert without_example({"none": none, "empty": empty, "one": one}) == {"none", "empty"}


def test_public_classes_and_functions_have_an_example():
    assert without_example({name: getattr(skbilevel, name) for name in skbilevel.__all__}) == set()
    listed = {name for name in listed_on(API.read_text()) if "." in name}
    members = {name: import_module("skbilevel." + name.split(".")[0]) for name in listed}
    items = {name: getattr(module, name.split(".")[1]) for name, module in members.items()}
    assert without_example(items) == set()


# What an import costs


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    return set(run(f"import sys\n{statement}\nprint(*sys.modules)").split())


def test_import_is_lazy():
    heavy = {"torch", "matplotlib", "sklearn", "scipy", "numpy"}
    assert not heavy & loaded_by("import skbilevel")
    assert heavy & loaded_by("import skbilevel; skbilevel.datasets") >= {"sklearn", "scipy"}


@pytest.mark.parametrize("module", sorted(TORCH_FREE - {"__init__"}))
def test_import_without_torch_loads_none(module):
    assert "torch" not in loaded_by(f"import skbilevel.{module}")


def test_import_takes_no_longer_than_that_of_scikit_learn_base():
    def seconds(module):
        code = (
            "import time; start = time.perf_counter();"
            f"import {module}; print(time.perf_counter() - start)"
        )
        return min(float(run(code)) for _ in range(3))

    assert seconds("skbilevel") <= 1.2 * seconds("sklearn.base")
