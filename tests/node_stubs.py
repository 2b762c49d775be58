"""The node pack without ComfyUI: just enough of comfy_api to read the nodes' schemas, and a host that lists nothing.

Inputs and outputs take what those of the oldest ComfyUI take that pyproject.toml allows, 0.8.0, and nothing else.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

PACK = Path(__file__).parents[1]
NAME = "dreamvideo_pack"  # any name but dreamvideo: the host calls the pack by its folder

LINK = {"display_name", "optional", "tooltip", "lazy", "extra_dict", "raw_link"}
WIDGET = LINK | {"default", "socketless"}
NUMBER = WIDGET | {"min", "max", "step", "display_mode", "force_input"}
TAKEN = {
    "BOOLEAN": WIDGET | {"label_on", "label_off", "force_input"},
    "INT": NUMBER | {"control_after_generate"},
    "FLOAT": NUMBER | {"round"},
    "STRING": WIDGET | {"multiline", "placeholder", "dynamic_prompts", "force_input"},
    "COMBO": WIDGET | {"options", "control_after_generate", "upload", "image_folder", "remote"},
}
GIVEN = {"id", "display_name", "tooltip", "is_output_list"}


@dataclass
class Socket:
    io_type: str
    id: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def optional(self) -> bool:
        return self.options.get("optional", False)

    @property
    def min(self) -> float | None:
        return self.options.get("min")

    @property
    def max(self) -> float | None:
        return self.options.get("max")


@dataclass
class Schema:
    node_id: str
    display_name: str = ""
    category: str = ""
    description: str = ""
    inputs: list[Socket] = field(default_factory=list)
    outputs: list[Socket] = field(default_factory=list)
    hidden: list = field(default_factory=list)
    is_input_list: bool = False
    is_output_node: bool = False


def _type(name: str) -> SimpleNamespace:
    def takes(id: str, **options: Any) -> Socket:
        return _socket(name, id, options, TAKEN.get(name, LINK))

    return SimpleNamespace(Input=takes, Output=lambda **options: _socket(name, "", options, GIVEN))


def _socket(name: str, id: str, options: dict[str, Any], known: set[str]) -> Socket:
    if unknown := sorted(set(options) - known):
        raise TypeError(f"{name} {id} got {', '.join(unknown)}, which the oldest ComfyUI does not take.")
    return Socket(name, id, options)


class _Io(ModuleType):
    Schema, ComfyNode = Schema, object
    NodeOutput = SimpleNamespace
    Hidden = SimpleNamespace(unique_id="UNIQUE_ID")
    Custom = staticmethod(_type)

    def __getattr__(self, name: str) -> SimpleNamespace:
        if name.startswith("_"):
            raise AttributeError(name)
        return _type(name.upper())


def load_nodes() -> list[type]:
    """The pack's node classes."""
    if f"{NAME}.nodes" not in sys.modules:
        latest = ModuleType("comfy_api.latest")
        latest.io, latest.ui, latest.ComfyExtension = _Io("io"), _Io("ui"), object
        own = {"comfy_api": ModuleType("comfy_api"), "comfy_api.latest": latest}
        before = {name: sys.modules.get(name) for name in own}
        sys.modules.update(own)
        spec = importlib.util.spec_from_file_location(
            NAME, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        pack = sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(pack)
        host = sys.modules[f"{NAME}.nodes.host"] = ModuleType(f"{NAME}.nodes.host")
        host.files_in = host.folders_of = lambda name: []
        host.file_of = lambda video: None  # nothing is a file: what a VIDEO holds is asked of it
        host.register = host.register_folders = lambda: None
        host.ADAPTERS_FOLDER = host.BASES_FOLDER = host.MOTION_FOLDER = ""
        importlib.import_module(f"{NAME}.nodes")
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return sys.modules[f"{NAME}.nodes"].NODES


def schemas() -> list[Schema]:
    return [node.define_schema() for node in load_nodes()]
