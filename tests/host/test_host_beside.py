"""The pack beside everything else a host loads: every stock model is still recognised, and no host is broken by us."""

import inspect
import logging
from collections import defaultdict

import pytest
import torch
from graphs import base, give, our_sample, pictures, prompts, stock_sample
from harness import Graph

pytestmark = pytest.mark.parametrize("host", ["static"], indirect=True)
PREFIX = "model.diffusion_model."
SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "use_linear_in_transformer": False,
    "context_dim": 768, "num_heads": 8, "use_spatial_transformer": True, "legacy": False,
}  # fmt: skip


@pytest.fixture
def ours(host):
    return host.module("nodes.host.model").ModelScopeT2V


def recognised(config, state):
    """The class that the host's list gives, or the error that one of its own ends in for want of a whole file."""
    import comfy.model_detection

    ask = comfy.model_detection.model_config_from_unet_config
    newer = {"unet_key_prefix": PREFIX} if "unet_key_prefix" in inspect.signature(ask).parameters else {}
    try:
        return type(ask(config, state, **newer))
    except Exception as error:
        return type(error)


def test_every_stock_model_is_recognised_as_without_us(host, ours, monkeypatch):
    import comfy.supported_models

    listed = list(comfy.supported_models.models)
    stock = [model for model in listed if model is not ours]
    assert ours in listed and len(stock) > 10
    classes = 0
    for model in stock:
        state = {key.format(PREFIX): torch.zeros(1) for key in model.required_keys}
        found = []
        for models in (listed, stock):
            monkeypatch.setattr(comfy.supported_models, "models", models)
            found.append(recognised(dict(model.unet_config), state))
        assert found[0] is found[1]
        classes += found[0] in stock
    assert classes > len(stock) / 2


def test_a_stable_diffusion_checkpoint_is_one(host):
    import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
    import comfy.model_detection
    import comfy.ops

    unet = openaimodel.UNetModel(**SD15, device="meta", operations=comfy.ops.disable_weight_init)
    state = {f"{PREFIX}{key}": torch.zeros(1).expand(tensor.shape) for key, tensor in unet.state_dict().items()}
    assert type(comfy.model_detection.model_config_from_unet(state, PREFIX)).__name__ == "SD15"


def test_whatever_a_host_asks_beside_is_taken(ours):
    anchors = {key: torch.zeros(1) for key in inspect.getmodule(ours).ANCHORS}
    prefixed = {f"{PREFIX}{key}": tensor for key, tensor in anchors.items()}
    for state, known in ((anchors, True), (prefixed, True), ({}, False), (None, False)):
        assert ours.matches({}, state) is known
        assert ours.matches({}, state, unet_key_prefix=PREFIX, something_new=1) is known
        assert ours.matches({}, state, PREFIX, object()) is known


@pytest.mark.parametrize("models", [None, (1, 2)], ids=["no list", "a tuple"])
def test_a_host_without_the_list_is_left_alone(host, monkeypatch, caplog, models):
    import comfy.supported_models

    if models is None:
        monkeypatch.delattr(comfy.supported_models, "models")
    else:
        monkeypatch.setattr(comfy.supported_models, "models", models)
    with caplog.at_level(logging.WARNING):
        host.module("nodes.host").register()
    assert len(caplog.records) == 1 and "will not know ModelScope's files" in caplog.text
    assert getattr(comfy.supported_models, "models", None) == models
    monkeypatch.undo()
    graph = Graph()
    assert host.run_with_probe(graph, [base(graph), 0])[0].model is not None


def test_registering_again_leaves_one(host, ours):
    import comfy.supported_models

    before = list(comfy.supported_models.models)
    host.module("nodes.host").register()
    assert comfy.supported_models.models == before
    assert [model.__name__ for model in before].count(ours.__name__) == 1


@pytest.fixture
def two_threads(host, monkeypatch):
    for name in host.module("dreamvideo.models.threads").OWN_CHOICE:  # what the whole suite has chosen
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_networks_take_one_thread_and_the_hosts_other_nodes_all(host, two_threads, monkeypatch):
    seen = defaultdict(set)

    def note(module, *_):
        seen[type(module).__name__].add(torch.get_num_threads())

    class Beside(host.nodes.NODE_CLASS_MAPPINGS["VAEDecode"]):
        def decode(self, vae, samples):
            seen["another node"].add(torch.get_num_threads())
            return super().decode(vae, samples)

    monkeypatch.setitem(host.nodes.NODE_CLASS_MAPPINGS, "VAEDecode", Beside)
    graph = Graph()
    loader = base(graph)
    token = graph.add(
        "DreamVideoTrainTextualInversion", model=[loader, 0], clip=[loader, 1], vae=[loader, 2], steps=1, seed=3,
        images=give(host, graph, "IMAGE", pictures(2)), placeholder="<thing>", class_word="ball", captions="",
        vectors=1, learning_rate=0.01, batch_size=2, preview_every=0, gradient_checkpointing="off", resume=False,
    )  # fmt: skip
    words = prompts(graph, [token, 3], "a <thing>")
    latents = [sample(graph, [loader, 0], *words) for sample in (stock_sample, our_sample)]
    decoded = [[graph.add("VAEDecode", samples=latent, vae=[loader, 2]), 0] for latent in latents]
    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        host.run_with_probe(graph, *decoded)
    finally:
        hook.remove()
    assert seen["VideoResBlock"] == {1}, seen
    assert seen["another node"] == {2} and torch.get_num_threads() == 2
