import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import adasel_stream

NAMES = [
    "adasel_stream",
    *(
        module.name
        for module in pkgutil.walk_packages(adasel_stream.__path__, "adasel_stream.")
        if ".demo" not in module.name and not module.name.endswith("__main__")
    ),
]
modules = pytest.mark.parametrize("name", NAMES)


def source(module: Any) -> ast.Module:
    """Parse a module."""
    return ast.parse(Path(module.__file__).read_text(encoding="utf-8"))


@modules
def test_exported_names_are_sorted_and_there(name: str) -> None:
    """Each module says what it offers, in order, and has it."""
    module = importlib.import_module(name)
    exported: list[str] = module.__all__
    by_case = sorted(exported, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert exported == by_case
    assert len(set(exported)) == len(exported)
    assert all(hasattr(module, exported_name) for exported_name in exported)


@modules
def test_everything_exported_is_documented(name: str) -> None:
    """Modules, functions, classes and their public methods say what they do."""
    module = importlib.import_module(name)
    assert module.__doc__
    for exported in module.__all__:
        member = getattr(module, exported)
        if inspect.isclass(member) or inspect.isfunction(member):
            assert member.__doc__, exported
        if inspect.isclass(member) and member.__module__.startswith("adasel_stream"):
            for attribute, value in vars(member).items():
                if not attribute.startswith("_") and inspect.isfunction(value):
                    assert value.__doc__, f"{exported}.{attribute}"


@modules
def test_a_module_exports_its_own_public_names(name: str) -> None:
    """A name without underscore that is no export would be neither public nor private."""
    module = importlib.import_module(name)
    if Path(module.__file__ or "").name == "__init__.py":
        return
    defined = {
        node.name
        for node in source(module).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert defined <= set(module.__all__)


def test_the_front_door_is_what_the_readme_needs() -> None:
    """A change here is a change for every user."""
    assert adasel_stream.__all__ == [
        "Decoding",
        "Guards",
        "LossBatch",
        "LossFeed",
        "LossRecord",
        "LossWriter",
        "PendingLabels",
        "Policy",
        "Preference",
        "Proxy",
        "Scored",
        "SelectingLoader",
        "StopIndicator",
        "aligned",
        "auto",
        "load_checkpoint",
        "paper",
        "save_checkpoint",
        "unbiased",
    ]
    assert (Path(adasel_stream.__file__).parent / "py.typed").exists()
    with pytest.raises(AttributeError, match="'adasel_stream' has no attribute 'Loader'"):
        _ = adasel_stream.Loader


def test_each_public_name_is_imported_when_it_is_asked_for() -> None:
    """A process that writes losses loads neither torch nor pyarrow."""
    code = (
        "import sys; from adasel_stream import LossWriter; "
        "print(sorted({'torch', 'pyarrow', 'prometheus_client'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
