"""examples/soft_prompts.ipynb; `.ci/run` executes it."""

import ast
import builtins
import json
import re
from pathlib import Path

import pytest

import spt_jax

NOTEBOOK = Path(__file__).parents[1] / "examples" / "soft_prompts.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_its_code_uses_public_names():
    names = {name for source in CODE for name in re.findall(r"\bspt_jax\.([A-Za-z]\w*)\(", source)}
    assert names <= set(spt_jax.__all__) and len(names) > 10


@pytest.mark.parametrize("source", CODE)
def test_a_cell_defines_what_it_uses_or_an_earlier_one_does(source):
    """A name that no cell binds would end the notebook after minutes of training."""
    trees = [ast.parse(code) for code in CODE[: CODE.index(source) + 1]]
    bound = set(dir(builtins))
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.FunctionDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    used = {node.id for node in ast.walk(trees[-1]) if isinstance(node, ast.Name)}
    assert used <= bound


def test_its_outputs_are_of_a_whole_run_and_name_no_machine():
    outputs = [output for cell in CELLS for output in cell.get("outputs", ())]
    assert all(cell["execution_count"] for cell in CELLS if cell["cell_type"] == "code")
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    texts = "".join(str(output.get("text", "")) for output in outputs)
    assert not re.search(r"/(home|root|tmp|work|Users)/", texts)
