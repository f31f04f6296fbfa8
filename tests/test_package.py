"""The package as a whole: its public names, its surroundings under test, what it ships."""

import ast
import importlib.metadata
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import spt_jax

PACKAGE = Path(spt_jax.__file__).parent


def test_public_names_are_those_that_type_checkers_see():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {a.name: node.module for node in imports for a in node.names}
    del seen["TYPE_CHECKING"], seen["Any"]
    assert seen == spt_jax._MODULES
    assert set(spt_jax.__all__) == set(seen)


def test_a_star_import_brings_every_public_name():
    names: dict = {}
    exec("from spt_jax import *", names)
    assert set(names) - {"__builtins__"} == set(spt_jax._MODULES)
    assert names["fit"] is spt_jax.fit


def test_the_package_says_that_it_has_types():
    assert (PACKAGE / "py.typed").read_bytes() == b""
    assert '"spt_jax": ["py.typed", ' in (PACKAGE.parent / "setup.py").read_text()


@pytest.mark.parametrize("name", sorted(spt_jax._MODULES))
def test_public_name_is_documented_and_named_as_it_is(name):
    value = getattr(spt_jax, name)
    assert value.__name__ == name
    assert value.__module__ == spt_jax._MODULES[name]
    assert value.__doc__
    assert name in dir(spt_jax)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'spt_jax' has no attribute 'fitt'"):
        _ = spt_jax.fitt


def test_importing_the_package_imports_no_jax():
    code = "import sys, spt_jax; spt_jax.TrainConfig; spt_jax.RunError; print('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("False\n", "")


def test_version_is_that_of_the_installed_package():
    try:
        installed = importlib.metadata.version("spt_jax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("spt_jax runs from its folder here and is not installed")
    assert installed == spt_jax.__version__


def test_neither_torch_nor_tensorflow_is_imported_by_any_module():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ("torch", "tensorflow", "transformers"), path


def test_what_serves_over_http_is_imported_by_a_few_modules_alone():
    """So the engine works without the extra `serve`, and so does every other command."""
    extra = {"fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"}
    users = set()
    for path in (PACKAGE / "serving").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            users |= {path.stem for name in names if name.split(".")[0] in extra}
    assert users == {"app", "forms", "server", "telemetry"}
    code = "import sys, spt_jax.serving.engine; print({'fastapi', 'pydantic'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("set()\n", "")


def test_tests_run_on_eight_cpu_devices_without_silent_broadcasts():
    assert len(jax.devices("cpu")) == 8
    with pytest.raises(ValueError, match="rank_promotion|rank promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


def test_tests_have_no_network():
    with pytest.raises(PermissionError, match="tests have no network: connection to .*192.0.2.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
