"""A ComfyUI inside the test process: boots once, runs graphs through its own executor, on the CPU."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import sys
import types
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

PACK = Path(__file__).parents[2]
EXTRAS = ("nodes_custom_sampler", "nodes_model_advanced", "nodes_video", "nodes_train", "nodes_images", "nodes_mask",
          "nodes_context_windows")  # fmt: skip

WINDOW = "the window that queued"


def find_comfyui() -> Path | None:
    """COMFYUI_PATH, the ComfyUI whose custom_nodes this pack lies in, or ~/comfy/ComfyUI."""
    places = [os.environ.get("COMFYUI_PATH"), PACK.parents[1], Path.home() / "comfy" / "ComfyUI"]
    return next((Path(place) for place in places if place and (Path(place) / "comfy" / "sd.py").is_file()), None)


class Graph(dict):
    """A graph in the API's format."""

    def add(self, kind: str, **inputs: Any) -> str:
        name = str(1 + max((int(each.partition(":")[0]) for each in self), default=0))  # "7:3" is in a part
        self[name] = {"class_type": kind, "inputs": inputs}
        return name

    def probe(self, *links: Any) -> str:
        """A node that hands its inputs to the test."""
        return self.add("TestProbe", **{f"value_{index}": link for index, link in enumerate(links)})


class HostError(RuntimeError):
    """A node failed; str: the first line that the user sees."""


class Cancelled(RuntimeError):
    pass


class _Any(str):
    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


class Probe:
    seen: dict[str, dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls):
        anything = {f"value_{index}": (_Any("*"),) for index in range(8)}
        return {"required": {}, "optional": anything, "hidden": {"unique_id": "UNIQUE_ID"}}

    RETURN_TYPES = ()
    FUNCTION = "take"
    OUTPUT_NODE = True
    CATEGORY = "test"
    INPUT_IS_LIST = True

    def take(self, unique_id=None, **values):
        Probe.seen[unique_id[0]] = values
        return {}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")


class _Server:
    """As much of the host's server as its executor asks for."""

    client_id: str | None = None  # the executor sets it, to what a graph was queued with
    last_node_id = None
    last_prompt_id = None
    receive_all_progress_notifications = True  # the fork that is an installable package asks

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.text_windows: set[str | None] = set()  # None is all of them
        self.text_nodes: set[str] = set()
        self.supports = ["custom_nodes_from_web"]
        self.sockets_metadata: dict = {}
        self.routes = types.SimpleNamespace(
            **{verb: lambda *_, **__: lambda f: f for verb in ("get", "post", "delete")}
        )
        self.prompt_queue = None

    def send_sync(self, *_: Any, **__: Any) -> None: ...

    def queue_updated(self) -> None: ...

    def add_on_prompt_handler(self, _: Any) -> None: ...

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        self.texts.append(text)
        self.text_windows.add(sid)
        self.text_nodes.add(node_id)


class Host:
    """boot() once a process."""

    def __init__(self, comfyui: Path, base: Path) -> None:
        for name in ("custom_nodes", "models/dreamvideo/tiny", "input", "output", "temp", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        self.base = base
        _write_base(base / "models" / "dreamvideo" / "tiny")
        self.progress: list[tuple[int, int]] = []
        self.previews: list[Any] = []
        self.cancel_after: int | None = None
        sys.path.insert(0, str(comfyui))
        for name in [name for name in sys.modules if name.partition(".")[0] in ("nodes", "utils", "app")]:
            del sys.modules[name]
        import comfy.cli_args

        args = comfy.cli_args.args
        args.cpu, args.base_directory, args.database_url = True, str(base), "sqlite:///:memory:"
        self.packaged = not (comfyui / "nodes.py").is_file()
        before = self._boot_packaged() if self.packaged else self._boot_plain(comfyui)
        self.ours = sorted(set(self.nodes.NODE_CLASS_MAPPINGS) - before)
        if not self.ours:
            raise RuntimeError("The host could not import the pack; its log says why.")
        # Asked of a node: pytest may have imported the pack's __init__.py too, under a name of its own.
        self.package = self.nodes.NODE_CLASS_MAPPINGS[self.ours[0]].__module__.rpartition(".nodes.")[0]
        self.nodes.NODE_CLASS_MAPPINGS["TestProbe"] = Probe
        self.executor = self._executor()

    def _folders(self, folder_paths) -> None:
        folder_paths.set_output_directory(str(self.base / "output"))
        folder_paths.set_temp_directory(str(self.base / "temp"))
        folder_paths.set_input_directory(str(self.base / "input"))

    def _boot_plain(self, comfyui: Path) -> set[str]:
        """Load the host and then the pack; the names of the nodes that were there before it."""
        import folder_paths
        import utils.install_util  # noqa: F401, before nodes puts comfy/ and its utils.py onto the path

        self._folders(folder_paths)
        import comfy.model_management
        import comfy.utils
        import execution
        import server

        import nodes

        self.execution, self.nodes, self.management = execution, nodes, comfy.model_management
        self.server = server.PromptServer.instance = _Server()
        comfy.utils.set_progress_bar_global_hook(self._hook)
        return asyncio.run(self._load(comfyui))

    async def _load(self, comfyui: Path) -> set[str]:
        for name in EXTRAS:
            path = comfyui / "comfy_extras" / f"{name}.py"
            if path.exists():
                await self.nodes.load_custom_node(str(path), module_parent="comfy_extras")
        before = set(self.nodes.NODE_CLASS_MAPPINGS)
        await self.nodes.load_custom_node(str(PACK))
        return before

    def _boot_packaged(self) -> set[str]:
        """As _boot_plain, for the fork that is an installable package: its modules are all below comfy."""
        import comfy.cmd.execution
        import comfy.cmd.folder_paths
        import comfy.cmd.server
        import comfy.model_management
        import comfy.nodes.base_nodes
        import comfy.nodes.vanilla_node_importing
        import comfy.nodes_context
        import comfy.utils
        from comfy.nodes.package import ExportedNodes, _import_nodes_in_module
        from comfy_compatibility.vanilla import prepare_vanilla_environment

        known = comfy.cmd.folder_paths.folder_names_and_paths
        known.base_paths.clear()
        known.base_paths.append(self.base)
        self._folders(comfy.cmd.folder_paths)
        prepare_vanilla_environment()
        self.execution, self.management = comfy.cmd.execution, comfy.model_management
        self.server = comfy.cmd.server.PromptServer.instance = _Server()
        comfy.utils._progress_bar_update = lambda value, total, preview=None, **_: self._hook(value, total, preview)
        self.nodes = comfy.nodes_context._nodes_local.nodes = ExportedNodes()
        self.nodes.update(_import_nodes_in_module(comfy.nodes.base_nodes))
        for name in EXTRAS:
            with suppress(ModuleNotFoundError):
                self.nodes.update(_import_nodes_in_module(importlib.import_module(f"comfy_extras.nodes.{name}")))
        before = set(self.nodes.NODE_CLASS_MAPPINGS)
        self.nodes.update(comfy.nodes.vanilla_node_importing._vanilla_load_custom_nodes_1(str(PACK)))
        return before

    def forget_file_lists(self) -> None:
        """Make the host look into its model folders anew."""
        import folder_paths

        getattr(folder_paths, "filename_list_cache", {}).clear()

    def forget_models(self) -> None:
        """As if the host had just been started."""
        self.executor = self._executor()
        self.management.unload_all_models()
        for name in ("temp", "output"):
            shutil.rmtree(self.base / name, ignore_errors=True)
            (self.base / name).mkdir()

    def _executor(self):
        try:
            return self.execution.PromptExecutor(self.server, cache_type=False, cache_size=None)
        except TypeError:
            return self.execution.PromptExecutor(self.server, cache_args={"lru": 0, "ram": 0, "ram_inactive": 0})

    def _hook(self, value, total, preview, node_id=None, **_) -> None:
        self.progress.append((value, total))
        if preview is not None:
            self.previews.append(preview)
        if self.cancel_after is not None and len(self.progress) >= self.cancel_after:
            self.cancel_after = None
            self.management.interrupt_current_processing()
        self.management.throw_exception_if_processing_interrupted()

    def module(self, name: str):
        """A module of the pack as the host has loaded it, e.g. "nodes.host"."""
        return sys.modules[f"{self.package}.{name}"]

    def run(self, graph: Graph, window: bool = True) -> dict[str, dict[str, Any]]:
        """Execute a graph; what each probe got. Raises HostError with the user's message, or Cancelled.

        window: it is queued from a browser window; else by a program that does not tell who it is.
        """
        Probe.seen.clear()
        self.progress.clear()
        self.previews.clear()
        return asyncio.run(self._run(graph, window))

    def run_with_probe(self, graph: Graph, *links: Any) -> list[Any]:
        """What these links carry."""
        probe = graph.probe(*links)
        got = self.run(graph)[probe]
        return [got[f"value_{index}"][0] for index in range(len(links))]

    async def _run(self, graph: Graph, window: bool) -> dict[str, dict[str, Any]]:
        name = str(uuid.uuid4())
        valid = await self.execution.validate_prompt(name, graph, None)
        if not valid[0] or valid[3]:
            raise HostError(f"{valid[1]} {valid[3]}")
        await self.executor.execute_async(graph, name, {"client_id": WINDOW} if window else {}, valid[2])
        for event, data in self.executor.status_messages:
            if event == "execution_error":
                raise HostError(data["exception_message"].splitlines()[0])
            if event == "execution_interrupted":
                raise Cancelled
        return {node: dict(values) for node, values in Probe.seen.items()}


def _write_base(folder: Path) -> None:
    """The embedded base's CLIP and VAE with a UNet that was never trained."""
    from safetensors.torch import save_file

    sys.path.insert(0, str(PACK))
    try:
        from dreamvideo.base import EMBEDDED_FOLDER
        from dreamvideo.models.unet import UNet
        from dreamvideo.nano.denoiser import CONFIG
    finally:
        sys.path.remove(str(PACK))
    generator = torch.Generator().manual_seed(0)
    unet = UNet(CONFIG)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    save_file(unet.state_dict(), folder / "unet.safetensors", {"unet_config": json.dumps(CONFIG.to_dict())})
    for name in ("clip", "vae"):
        shutil.copy(EMBEDDED_FOLDER / f"{name}.safetensors", folder)
