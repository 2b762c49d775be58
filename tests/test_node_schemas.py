"""What a person sees of the nodes is complete: tooltips, help pages, translations; and what ships is clean."""

import ast
import json
import re
from pathlib import Path

import pytest
from node_stubs import PACK, schemas

from dreamvideo.safety.limits import LIMITS

SCHEMAS = schemas()
IDS = [schema.node_id for schema in SCHEMAS]
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SHIPPED = [PACK / "__init__.py", *sorted((PACK / "nodes").rglob("*.py")), *sorted((PACK / "dreamvideo").rglob("*.py"))]
HOST_MODULES = ("comfy", "comfy_extras", "folder_paths", "server", "node_helpers", "latent_preview", "execution")
FORBIDDEN = (
    r"\bsubprocess\b|os\.system|\burllib\b|\brequests\b|\bsocket\b|os\.environ|import_module|(?<![\w.])(eval|exec)\("
)


@pytest.fixture(params=SCHEMAS, ids=IDS)
def schema(request):
    return request.param


def test_ids_are_ours_and_unique():
    assert len(set(IDS)) == len(IDS) >= 13
    assert all(re.fullmatch(r"DreamVideo[A-Za-z]+", name) for name in IDS)


def test_node_says_what_it_is(schema):
    assert schema.display_name and schema.category.split("/")[0] == "DreamVideo"
    assert schema.description.endswith(".") and 30 < len(schema.description) < 260


def test_every_socket_has_a_tooltip_that_is_a_sentence(schema):
    for socket in [*schema.inputs, *schema.outputs]:
        tooltip = socket.options.get("tooltip", "")
        assert re.fullmatch(r"[A-Z0-9].{12,}[.?]", tooltip, re.S), (socket, tooltip)
    assert all(socket.options.get("display_name") for socket in schema.outputs)


def test_widgets_have_defaults_and_limits(schema):
    for socket in schema.inputs:
        if socket.io_type not in WIDGETS or socket.options.get("force_input"):
            continue
        assert "default" in socket.options or socket.io_type == "COMBO", socket
        if socket.io_type in ("INT", "FLOAT"):
            assert socket.options["min"] <= socket.options["default"] <= socket.options["max"]
        if socket.io_type == "COMBO":
            assert socket.options.get("default", socket.options["options"][0]) in socket.options["options"]


def test_numbers_end_where_those_of_the_command_line_do(schema):
    for socket in schema.inputs:
        if socket.id in ("seed", "width", "height", "offset_noise"):
            assert socket.options["max"] == LIMITS[socket.id].most


def test_input_names_are_unique_and_training_seeds_stay(schema):
    names = [socket.id for socket in schema.inputs]
    assert len(set(names)) == len(names)
    for socket in schema.inputs:
        if socket.id == "seed" and schema.category.endswith("training"):
            assert socket.options["control_after_generate"] is False


def test_help_page_tells_every_input_and_output(schema):
    page = (PACK / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
    for socket in schema.inputs:
        assert f"`{socket.id}`" in page, socket.id
    for socket in schema.outputs:
        assert f"`{socket.options['display_name']}`" in page


@pytest.mark.parametrize("language", ["en", "zh"])
def test_locale_covers_every_node_and_nothing_else(language):
    found = json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(found) == set(IDS)
    for schema in SCHEMAS:
        entry = found[schema.node_id]
        assert entry["display_name"] and entry["description"]
        assert set(entry["inputs"]) == {socket.id for socket in schema.inputs}
        assert set(entry["outputs"]) == {str(index) for index in range(len(schema.outputs))}
        for texts in [*entry["inputs"].values(), *entry["outputs"].values()]:
            assert texts["name"] and texts["tooltip"]


def test_english_locale_says_what_the_schema_says():
    found = json.loads((PACK / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    for schema in SCHEMAS:
        entry = found[schema.node_id]
        assert (entry["display_name"], entry["description"]) == (schema.display_name, schema.description)
        for socket in schema.inputs:
            assert entry["inputs"][socket.id]["tooltip"] == socket.options["tooltip"], socket.id


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(PACK)))
def test_shipped_code_has_nothing_a_scanner_objects_to(path: Path):
    assert not re.findall(FORBIDDEN, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(PACK)))
def test_only_the_host_package_touches_the_host(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    roots = {name.partition(".")[0] for name in imported}
    if path.parent != PACK / "nodes" / "host":
        assert not roots & set(HOST_MODULES)
    if "nodes" not in path.relative_to(PACK).parts:
        assert "comfy_api" not in roots
