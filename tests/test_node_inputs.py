"""What the nodes take, and what they give to the page: for every node alike, without a host."""

from __future__ import annotations

import ast
import math
import sys

import pytest
from node_stubs import NAME, PACK, Schema, load_nodes, schemas

NODES = load_nodes()
NUMBERS = [
    (node, socket)
    for node, schema in zip(NODES, schemas(), strict=True)
    for socket in schema.inputs
    if socket.io_type in ("INT", "FLOAT") and "min" in socket.options
]
REQUIRED = [
    (node, socket.id)
    for node, schema in zip(NODES, schemas(), strict=True)
    for socket in schema.inputs
    if not socket.optional
]


def given(node, **changed):
    """An object for every input, that is a list of one where the node takes lists."""
    schema = node.define_schema()
    values = {socket.id: socket.options.get("default", object()) for socket in schema.inputs} | changed
    return {name: [value] for name, value in values.items()} if schema.is_input_list else values


def name(value):
    return getattr(value, "__name__", getattr(value, "id", str(value)))


@pytest.mark.parametrize(("node", "socket"), NUMBERS, ids=name)
def test_no_number_is_nan_or_out_of_its_limits(node, socket):
    for number in (math.nan, math.inf, -math.inf, socket.max + 1, socket.min - 1, "many"):
        with pytest.raises(ValueError, match=f"^The input {socket.id} is "):
            node.execute(**given(node, **{socket.id: number}))


@pytest.mark.parametrize(("node", "required"), REQUIRED, ids=name)
def test_no_required_input_holds_nothing(node, required):
    with pytest.raises(ValueError, match=f"^The input {required} holds nothing"):
        node.execute(**given(node, **{required: None}))


def test_a_base_that_is_null_is_told_before_execution_too():
    loaders = sys.modules[f"{NAME}.nodes.loaders"]
    with pytest.raises(ValueError, match="holds nothing"):
        loaders.base_files(None, loaders.AUTOMATIC, loaders.AUTOMATIC)
    assert math.isnan(loaders.LoadModelScopeT2V.fingerprint_inputs(None))


def test_errors_hold_nothing_that_steers_a_terminal():
    class Fails:
        @classmethod
        def define_schema(cls):
            return Schema("Fails")

        @classmethod
        def execute(cls, text):
            raise ValueError(f"The token {text} is damaged.")

    node = sys.modules[f"{NAME}.nodes.inputs"].checked(Fails)
    for text, told in (("<a>", "<a>"), ("\x1b[2J", r"\\u001b\[2J")):
        with pytest.raises(ValueError, match=f"^The token {told} is damaged.$"):
            node.execute(text)
        with pytest.raises(ValueError, match=f"^The token {told} is damaged.$"):
            node.execute(text=text)


def test_all_text_for_the_page_goes_through_one_function():
    """PreviewText and progress text are HTML in the page: only for_page may give them anything."""
    uses = []
    for path in sorted((PACK / "nodes").rglob("*.py")):
        for found in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(found, ast.Call) and isinstance(found.func, ast.Attribute):
                if found.func.attr in ("PreviewText", "send_progress_text"):
                    uses.append((path.name, found.func.attr, ast.unparse(found.args[0])))
            elif isinstance(found, ast.Dict):
                keys = [key.value for key in found.keys if isinstance(key, ast.Constant)]
                assert "text" not in keys, f"{path.name} makes a ui of its own"
            elif isinstance(found, ast.keyword) and found.arg == "ui":
                assert ast.unparse(found.value).startswith(("host.shown(", "ui.PreviewImage(")), path.name
    assert sorted(uses) == [
        ("progress.py", "PreviewText", "for_page(text)"),
        ("progress.py", "send_progress_text", "for_page(text)"),
    ]
