"""Which files of the nodes may ask which. What holds in the package, import-linter checks by pyproject.toml."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from node_stubs import PACK


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACK).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """The pack's own modules that a file imports, inside of functions too."""
    package, found = path.relative_to(PACK).parent.parts, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            home = package[: len(package) - node.level + 1]
            found |= {".".join([*home, node.module or alias.name]) for alias in node.names}
    return found


IMPORTS = {name_of(path): imported(path) for path in (PACK / "nodes").rglob("*.py")}


def test_imports_are_found():
    assert IMPORTS["nodes.host.encoders"] >= {"dreamvideo.encoders.clip", "nodes.placeholders"}
    assert IMPORTS["nodes"] >= {"nodes.host", "nodes.loaders"}


def test_nodes_do_not_ask_the_command_line():
    for name, asked in IMPORTS.items():
        assert not [each for each in asked if each.startswith("dreamvideo.commands")], name


def test_nodes_have_no_circles():
    TopologicalSorter({name: asked & IMPORTS.keys() for name, asked in IMPORTS.items()}).prepare()


def test_host_asks_no_node():
    """What it takes from beside it asks nothing of the nodes."""
    for name in IMPORTS:
        if name.startswith("nodes.host."):
            beside = {each for each in IMPORTS[name] & IMPORTS.keys() if not each.startswith("nodes.host")}
            assert not {each for near in beside for each in IMPORTS[near]} & IMPORTS.keys(), name
