"""A small network computes with one thread of a CPU, and nobody else notices."""

import threading

import pytest
import torch
from fakes import pictures
from tiny_base import SIDE, write_tiny_base
from torch import nn

from dreamvideo.base import open_base
from dreamvideo.models import threads
from dreamvideo.models.threads import threads_for
from dreamvideo.sampling import SamplingSettings, generate
from dreamvideo.training.data import encode_photos
from dreamvideo.training.loop import Callbacks
from dreamvideo.training.settings import TrainingSettings
from dreamvideo.training.stages import train_textual_inversion

CPU = torch.device("cpu")
SMALL = nn.Linear(4, 4)


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    for name in threads.OWN_CHOICE:  # what the whole suite has chosen
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def fresh_thread() -> int:
    """How many threads what a new thread computes gets."""
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_a_small_network_gets_one_thread_and_then_all_are_back():
    with threads_for(SMALL, CPU):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_a_large_network_and_another_device_change_nothing(monkeypatch):
    with threads_for(SMALL, torch.device("cuda")):
        assert torch.get_num_threads() == 2
    monkeypatch.setattr(threads, "SMALL", threads.parameters_of(SMALL))
    with threads_for(SMALL, CPU):
        assert torch.get_num_threads() == 2


def test_the_full_size_networks_are_large_and_the_embedded_ones_small():
    from dreamvideo.models.config import UNetConfig
    from dreamvideo.models.unet import UNet

    base = open_base()
    for network in (base.unet, base.encoders.text.clip, base.encoders.vae.vae):
        assert threads.parameters_of(network) < threads.SMALL
    assert threads.parameters_of(UNet(UNetConfig(), device="meta")) > 10 * threads.SMALL


def test_the_users_own_choice_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with threads_for(SMALL, CPU):
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_threads_are_back_after_an_error(error):
    with pytest.raises(error), threads_for(SMALL, CPU):
        raise error
    assert torch.get_num_threads() == 2


def test_one_within_another_ends_with_the_outer_one():
    with threads_for(SMALL, CPU):
        with threads_for(SMALL, CPU):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_other_threads_keep_theirs():
    asked, told, found = threading.Event(), threading.Event(), []

    def compute():  # as a node does that runs beside
        found.append(torch.get_num_threads())
        asked.wait(60)
        found.append(torch.get_num_threads())
        told.set()

    beside = threading.Thread(target=compute)
    beside.start()
    with threads_for(SMALL, CPU):
        assert fresh_thread() == 2  # it would keep what it starts with for good
        asked.set()
        assert told.wait(60) and found == [2, 2]
    beside.join()
    assert fresh_thread() == 2


def test_what_new_threads_start_with_need_not_be_what_this_one_has():
    torch.set_num_threads(2)
    other = threading.Thread(target=torch.set_num_threads, args=(3,))  # for itself and for those to come
    other.start()
    other.join()
    with threads_for(SMALL, CPU):
        assert fresh_thread() == 3
    assert (torch.get_num_threads(), fresh_thread()) == (2, 3)


def test_training_sampling_and_encoding_of_a_small_base(tmp_path):
    base, seen = open_base(write_tiny_base(tmp_path), device="cpu"), {}
    clip, vae = base.encoders.text.clip, base.encoders.vae.vae
    layers = {
        "text": clip.ln_final,
        "image": clip.visual.conv1,
        "encoder": vae.encoder.conv_in,
        "decoder": vae.decoder.conv_in,
        "unet": base.unet.time_embed,
    }
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda *_, name=name: seen.setdefault(name, set()).add(torch.get_num_threads()))
    around = []
    data = encode_photos(pictures(2), "a <toy>", base.encoders)
    train_textual_inversion(
        base.unet, base.encoders.text, data, placeholder="<toy>", class_word="toy",
        settings=TrainingSettings(steps=1, learning_rate=1e-3, batch_size=2),
        callbacks=Callbacks(progress=lambda *_: around.append((torch.get_num_threads(), fresh_thread()))),
    )  # fmt: skip
    generate(base.unet, base.encoders, SamplingSettings("a toy", frames=2, height=SIDE, width=SIDE, steps=1))
    assert seen == {name: {1} for name in layers}
    assert around == [(1, 2)]  # the backward pass and the optimiser's update, too
    assert torch.get_num_threads() == 2
