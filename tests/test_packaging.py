"""What is published: one version, an archive with nothing but what a user needs, texts that miss nothing."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from node_stubs import PACK, schemas
from test_node_schemas import SHIPPED

import dreamvideo

TEXT = (PACK / "pyproject.toml").read_text(encoding="utf-8")
TEMPLATES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
BLUEPRINTS = sorted(path.stem for path in (PACK / "subgraphs").glob("*.json"))
NEEDED = {"__init__.py", "LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "requirements.txt"}
FOLDERS = {"dreamvideo", "nodes", "web", "locales", "workflows", "subgraphs"}


def archive() -> list[Path]:
    """What the registry's tool packs: the files git knows, less .comfyignore."""
    if shutil.which("git") is None or not (PACK / ".git").exists():
        pytest.skip("No git checkout: what would be published is not known.")

    def listed(*more: str) -> set[str]:
        found = subprocess.run(["git", "-C", PACK, "ls-files", *more], capture_output=True, text=True, check=True)
        return set(found.stdout.splitlines())

    return [Path(name) for name in sorted(listed() - listed("--cached", "--ignored", "--exclude-from=.comfyignore"))]


def test_one_version():
    assert re.search(r'^version = "([^"]+)"', TEXT, re.M)[1] == dreamvideo.__version__


def test_registry_facts_are_complete():
    for key in ("PublisherId", "DisplayName", "Icon", "requires-comfyui", "Repository", "classifiers"):
        assert re.search(rf"^{key} = ", TEXT, re.M), key
    icon = (PACK / "docs" / "icon.png").read_bytes()
    assert {int.from_bytes(icon[16:20], "big"), int.from_bytes(icon[20:24], "big")} <= set(range(1, 401))


def test_changelog_tells_of_this_version():
    assert f"## {dreamvideo.__version__}" in (PACK / "CHANGELOG.md").read_text(encoding="utf-8")


def test_archive_holds_what_a_user_needs_and_no_more():
    found = archive()
    assert {path.parts[0] for path in found} == NEEDED | FOLDERS
    assert {path.name for path in found} >= {f"{name}.json" for name in TEMPLATES + BLUEPRINTS}
    assert not [path for path in found if path.suffix in (".pth", ".bin", ".ckpt", ".pt", ".exe", ".sh")]


def test_scanner_tests_cover_all_code_of_the_archive():
    code = {PACK / path for path in archive() if path.suffix in (".py", ".js")}
    assert code == {path for path in SHIPPED if path in code} and len(code) > 30


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_has_a_small_thumbnail(name):
    picture = PACK / "workflows" / f"{name}.jpg"
    assert picture.is_file() and picture.read_bytes()[:2] == b"\xff\xd8" and picture.stat().st_size < 60_000


def test_page_of_nodes_tells_of_every_node_with_its_picture():
    page = (PACK / "docs" / "nodes.md").read_text(encoding="utf-8")
    for schema in schemas():
        assert f"## {schema.display_name}\n" in page
        assert f"(nodes/{schema.node_id}.png)" in page and (PACK / "docs" / "nodes" / f"{schema.node_id}.png").is_file()
        assert f"(../web/docs/{schema.node_id}.md)" in page
    assert sum(path.stat().st_size for path in (PACK / "docs" / "nodes").glob("*.png")) < 1_500_000
    assert len(BLUEPRINTS) == 3 and all(f"*{name}*" in page for name in BLUEPRINTS)
    for name in TEMPLATES:
        assert f"`{name}`" in page or f"`{name}`" in (PACK / "README.md").read_text(encoding="utf-8"), name
