"""Training inside the host: every stage, cancelling and resuming, and what it leaves behind."""

import shutil

import pytest
import torch
from graphs import base, give, need_weight_patches, pictures, prompts, random_adapter, stock_sample
from harness import Cancelled, Graph, HostError

RUN = {"batch_size": 2, "seed": 3, "preview_every": 0, "gradient_checkpointing": "off", "resume": True}
TOKEN = {"placeholder": "<thing>", "class_word": "ball", "captions": ""}


def start(host):
    graph = Graph()
    loader = base(graph)
    return graph, loader, {"model": [loader, 0], "clip": [loader, 1], "vae": [loader, 2]}


def train_token(host, graph, common, steps=3, **options):
    photos = give(host, graph, "IMAGE", PHOTOS)
    settings = {**RUN, **TOKEN, "vectors": 1, "learning_rate": 0.01, "images": photos, **options}
    return graph.add("DreamVideoTrainTextualInversion", steps=steps, **common, **settings)


def train_motion(host, graph, common, loader, steps=3, caption="a ball rolls", **options):
    clip, covered = give(host, graph, "IMAGE", CLIP), options.pop("covered", None)
    masked = {} if covered is None else {"masks": give(host, graph, "MASK", covered)}
    words = graph.add("DreamVideoMotionClips", images=clip, caption=caption, frames=4, fps=8.0, images_fps=8.0,
                      width=64, height=64, **masked)  # fmt: skip
    if masked:
        options["masks"] = [words, 4]
    settings = {
        **RUN,
        "batch_size": 1,
        "learning_rate": 0.01,
        "text_drop": 0.5,
        "image_drop": "automatic",
        "method": "dreamvideo",
        **options,
    }
    return graph.add(
        "DreamVideoTrainMotion", clip_vision=[loader, 3], clips=[words, 0], captions=[words, 1], frames=[words, 2],
        steps=steps, **common, **settings,
    )  # fmt: skip


PHOTOS = pictures(2)
CLIP = pictures(6, seed=1)
COVERED = torch.zeros(6, 64, 64)
COVERED[:, :32] = 1  # the upper half
STATES = "dreamvideo_training"


def forget_states(host):
    for root in ("output", "temp"):
        shutil.rmtree(host.base / root / STATES, ignore_errors=True)


def same(a, b) -> bool:
    parts = [(each.adapter.state_dict() if each.adapter else {}) | each.tokens for each in (a, b)]
    return parts[0].keys() == parts[1].keys() and all(torch.equal(parts[0][key], parts[1][key]) for key in parts[0])


def test_word_then_looks_then_a_video(host):
    graph, loader, common = start(host)
    token = train_token(host, graph, common, clip_vision=[loader, 3])
    photos = give(host, graph, "IMAGE", PHOTOS)
    identity = graph.add("DreamVideoTrainIdentity", token=[token, 0], images=photos, captions="", steps=3,
                         learning_rate=0.01, clip_vision=[loader, 3], **common, **RUN)  # fmt: skip
    positive, negative = prompts(graph, [identity, 3], "a <thing> on the grass")
    video = stock_sample(graph, [identity, 2], positive, negative)
    plain = stock_sample(graph, [loader, 0], positive, negative)
    got = host.run_with_probe(graph, [token, 0], [token, 1], [identity, 0], [identity, 1], video, plain)
    word, word_loss, looks, looks_loss, video, plain = got
    assert word.info.kind == "token" and word.tokens["<thing>"].shape == (1, 64)
    assert looks.info.kind == "identity" and looks.info.steps == 3 and looks.features.shape == (2, 64)
    assert len(word_loss["loss"]) == len(looks_loss["loss"]) == 3
    assert not torch.equal(video["samples"], plain["samples"])
    assert any("steps/s" in text and "left" in text for text in host.server.texts)


def test_subject_in_one_node_is_both_stages(host):
    graph, loader, common = start(host)
    photos = give(host, graph, "IMAGE", PHOTOS)
    settings = {**RUN, "seed": 11}
    subject = graph.add("DreamVideoTrainSubject", images=photos, token_steps=3, token_learning_rate=0.01, steps=3,
                        learning_rate=0.01, method="dreamvideo", clip_vision=[loader, 3], **common, **settings,
                        **TOKEN)  # fmt: skip
    token = train_token(host, graph, common, clip_vision=[loader, 3], seed=11)
    identity = graph.add("DreamVideoTrainIdentity", token=[token, 0], images=photos, captions="", steps=3,
                         learning_rate=0.01, clip_vision=[loader, 3], **common, **settings)  # fmt: skip
    whole, parts, loss, plot = host.run_with_probe(graph, [subject, 0], [identity, 0], [subject, 1], [subject, 4])
    assert same(whole, parts)
    assert len(loss["loss"]) == 6 and plot.shape == (1, 380, 640, 3) and plot.std() > 0


@pytest.mark.parametrize("method, kind", [("no_textual_identity", "identity"), ("textual_inversion", "token"),
                                          ("custom_diffusion", "weights"), ("lora", "weights")])  # fmt: skip
def test_a_subject_by_another_method(host, method, kind):
    graph, loader, common = start(host)
    if kind == "weights":
        need_weight_patches(host)
    photos = give(host, graph, "IMAGE", PHOTOS)
    node = graph.add("DreamVideoTrainSubject", images=photos, token_steps=2, token_learning_rate=0.01, steps=2,
                     learning_rate=0.01, method=method, **common, **RUN, **TOKEN)  # fmt: skip
    positive, negative = prompts(graph, [node, 3], "a <thing> on the grass")
    video = stock_sample(graph, [node, 2], positive, negative)
    plain = stock_sample(graph, [loader, 0], positive, negative)
    trained, loss, video, plain = host.run_with_probe(graph, [node, 0], [node, 1], video, plain)
    assert trained.info.kind == kind and trained.info.extra["method"].startswith(method)
    assert len(loss["loss"]) == 2 and list(trained.tokens) == ["<thing>"]
    assert torch.equal(video["samples"], plain["samples"]) == (kind == "token")  # its word is all, and both have it


def test_a_motion_with_a_word_of_its_own(host):
    graph, loader, common = start(host)
    node = train_motion(host, graph, common, loader, 2, caption="a ball <rolling>", method="customizing_motion")
    trained = host.run_with_probe(graph, [node, 0])[0]
    assert trained.info.kind == "weights" and list(trained.tokens) == ["<rolling>"]
    graph, loader, common = start(host)
    node = train_motion(host, graph, common, loader, 2, method="customizing_motion")
    with pytest.raises(HostError, match="name it in the caption, as <my-motion>"):
        host.run_with_probe(graph, [node, 0])


def test_a_motion_beyond_the_paper_is_masked_trained_and_applied(host):
    made = []
    for more in ({"debias": "on", "absorber": "on", "covered": COVERED}, {"covered": COVERED}, {}):
        graph, loader, common = start(host)
        node = train_motion(host, graph, common, loader, 2, method="frame_aware_convolutions", **more)
        positive, negative = prompts(graph, [loader, 1], "a ball rolls")
        region = graph.add("DreamVideoApplyAdapter", model=[loader, 0], adapter=[node, 0], strength=1.0,
                           start_percent=0.0, end_percent=0.6, mask=give(host, graph, "MASK", COVERED[:1]))  # fmt: skip
        whole, part, plain = (
            stock_sample(graph, model, positive, negative) for model in ([node, 2], [region, 0], [loader, 0])
        )
        trained, *videos = host.run_with_probe(graph, [node, 0], whole, part, plain)
        whole, part, plain = (video["samples"] for video in videos)
        assert not torch.equal(whole, plain) and not torch.equal(part, plain) and not torch.equal(whole, part)
        config = trained.adapter.config
        assert (config.frames, config.conv_rank is not None) == (4, True)
        assert not any("absorber" in name for name in trained.adapter.state_dict())
        made.append(trained)
    assert not same(made[0], made[1]) and not same(made[1], made[2])


def test_motion_with_preview_leaves_the_base_alone(host):
    graph, loader, common = start(host)
    positive, negative = prompts(graph, [loader, 1], "a ball rolls")
    before = host.run_with_probe(graph, stock_sample(graph, [loader, 0], positive, negative))[0]["samples"]
    motion = train_motion(host, graph, common, loader, preview_every=2)
    moved = stock_sample(graph, [motion, 2], positive, negative, steps=3)
    again = stock_sample(graph, [loader, 0], positive, negative)
    trained, moved, after = host.run_with_probe(graph, [motion, 0], moved, again)
    assert trained.info.kind == "motion" and host.previews
    assert torch.equal(before, after["samples"])
    assert moved["samples"].isfinite().all()


def test_snapshots_are_kept_and_compared(host):
    graph, loader, common = start(host)
    node = train_motion(host, graph, common, loader, 3, seed=111, snapshot_every=1, filename_prefix="kept")
    host.run_with_probe(graph, [node, 0])
    written = {path.name.partition("_.")[2] for path in (host.base / "output" / "dreamvideo").glob("kept_*")}
    steps = {"step-00001.safetensors", "step-00002.safetensors"}
    assert written == {"safetensors", "losses.csv", "losses.png", "steps.png", *steps}


@pytest.mark.parametrize("host", ["static"], indirect=True)
def test_cancel_keeps_what_was_learned_and_the_next_run_goes_on(host):
    graph, loader, common = start(host)
    whole = host.run_with_probe(graph, [train_motion(host, graph, common, loader, 6, seed=21), 0])[0]
    forget_states(host)
    states = host.base / "output" / STATES

    graph, loader, common = start(host)
    train = train_motion(host, graph, common, loader, 6, seed=21, batch_size=1, text_drop=0.5)
    graph[train]["inputs"]["preview_every"] = 1000  # another graph to the host's cache, the same run to us
    host.cancel_after = 3
    with pytest.raises(Cancelled):
        host.run_with_probe(graph, [train, 0])
    kept = list(states.glob("motion-*/motion.safetensors"))
    assert kept
    resumed, loss = host.run_with_probe(graph, [train, 0], [train, 1])
    assert same(whole, resumed) and len(loss["loss"]) == 6
    assert len([value for value, total in host.progress if total == 6]) < 6


@pytest.mark.parametrize("host", ["static"], indirect=True)
def test_fewer_steps_begin_anew_and_more_go_on(host):
    def trained(steps, **options):
        graph, loader, common = start(host)
        node = train_motion(host, graph, common, loader, steps, seed=41, **options)
        return host.run_with_probe(graph, [node, 0])[0]

    few, longer = trained(2), trained(4)
    assert longer.info.steps == 4 and len(host.progress) == 2
    host.server.texts.clear()
    again = trained(2)
    assert again.info.steps == 2 and same(few, again)
    assert any("4 steps, more than the 2 asked for: beginning anew" in text for text in host.server.texts)
    assert same(trained(4, resume=False), longer)


@pytest.mark.parametrize("host", ["static"], indirect=True)
def test_a_subjects_looks_go_with_its_word(host):
    """Another number of token steps makes another word: the looks of the former one are not gone on from."""

    def trained(token_steps):
        graph, loader, common = start(host)
        node = graph.add("DreamVideoTrainSubject", images=give(host, graph, "IMAGE", PHOTOS), token_steps=token_steps,
                         token_learning_rate=0.01, steps=2, learning_rate=0.01, method="dreamvideo", **common, **TOKEN,
                         **{**RUN, "seed": 51})  # fmt: skip
        return host.run_with_probe(graph, [node, 0])[0]

    first, longer, again = trained(2), trained(3), trained(2)
    assert same(first, again) and not same(first, longer)


@pytest.mark.parametrize("host", ["static"], indirect=True)
def test_checkpointing_changes_what_is_kept_and_not_what_is_learned(host):
    results = []
    for choice in ("off", "on", "automatic"):
        graph, loader, common = start(host)
        host.server.texts.clear()
        options = {"gradient_checkpointing": choice, "resume": False, "seed": 61}
        node = train_motion(host, graph, common, loader, 2, **options)
        results.append(host.run_with_probe(graph, [node, 0])[0])
        told = any("Gradient checkpointing is" in text for text in host.server.texts)
        assert told == (choice == "automatic")
    off, on, automatic = (each.adapter.state_dict() for each in results)
    for name, tensor in off.items():
        torch.testing.assert_close(on[name], tensor, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(automatic[name], tensor, atol=1e-6, rtol=1e-4)


def test_resident_inference_tensors_do_not_stop_training(host):
    """A KSampler ran before: the weights are on their device already, moved in inference mode."""
    graph, loader, common = start(host)
    positive, negative = prompts(graph, [loader, 1], "a ball")
    video = stock_sample(graph, [loader, 0], positive, negative)
    host.run_with_probe(graph, video)
    identity = graph.add("DreamVideoTrainIdentity", token=give(host, graph, "DREAMVIDEO_ADAPTER", TOKEN_FILE(host)),
                         images=give(host, graph, "IMAGE", PHOTOS), captions="", steps=2, learning_rate=0.01,
                         **common, **{**RUN, "gradient_checkpointing": "on"})  # fmt: skip
    assert host.run_with_probe(graph, [identity, 0])[0].info.steps == 2


def TOKEN_FILE(host):
    files = host.module("dreamvideo")
    info = files.AdapterInfo(kind="token", placeholder="<thing>", class_word="ball")
    return files.TrainedAdapter(None, info, {"<thing>": random_adapter(host, "identity").tokens["<thing>"]}, None)


@pytest.mark.parametrize("host", ["static"], indirect=True)
@pytest.mark.parametrize("kind", ["subject", "motion", "motion beyond"])
def test_same_bytes_from_both_faces(host, monkeypatch, tmp_path, kind):
    """What the node hands to the runner gives, claimed as the command line claims its place, the very file."""
    run, runs = host.module("nodes.trainers.run"), host.module("dreamvideo.runs")
    places, other = host.module("dreamvideo.training.places"), tmp_path / "other.safetensors"

    def twice(base, data, plan, place, reports):
        with places.claimed(other, other, plan.run("these", base.fingerprint), False) as own:
            runs.train(base, data, plan, own)
        return runs.train(base, data, plan, place, reports)

    monkeypatch.setattr(run, "train", twice)
    graph, loader, common = start(host)
    if kind != "subject":
        more = {} if kind == "motion" else {"method": "dreamvideo_plus", "absorber": "on", "covered": COVERED}
        node = train_motion(host, graph, common, loader, 2, seed=101, filename_prefix="twice", resume=False, **more)
    else:
        node = graph.add("DreamVideoTrainSubject", images=give(host, graph, "IMAGE", PHOTOS), token_steps=2,
                         token_learning_rate=0.01, steps=2, learning_rate=0.01, method="dreamvideo", **common, **TOKEN,
                         **{**RUN, "seed": 101, "resume": False}, filename_prefix="twice")  # fmt: skip
    host.run_with_probe(graph, [node, 0])
    written = max((host.base / "output" / "dreamvideo").glob("twice_*_.safetensors"))
    assert written.read_bytes() == other.read_bytes()
    assert written.with_suffix(".losses.csv").read_bytes() == other.with_suffix(".losses.csv").read_bytes()


@pytest.mark.parametrize("method", ["dreamvideo", "dreamvideo_plus", "frame_aware_convolutions"])
def test_same_adapter_as_the_command_line_trains(host, method):
    """The engine with its own encoders and the node, same data and seed: equal up to the encoders' rounding."""
    graph, loader, common = start(host)
    motion = train_motion(host, graph, common, loader, 3, seed=31, learning_rate=0.001, method=method)
    got = host.run_with_probe(graph, [motion, 0])[0]
    dv = host.module("dreamvideo")
    stages, data = host.module("dreamvideo.training.stages"), host.module("dreamvideo.training.data")
    files = dv.find_base(host.base / "models" / "dreamvideo" / "tiny")
    unet, own = dv.load_unet(files.unet), dv.load_encoders(files)
    defaults, rows = host.module("dreamvideo.defaults"), host.module("dreamvideo.training.methods").MOTION_METHODS
    row = defaults.fitted(rows[method], unet.config)
    settings = defaults.EMBEDDED.settings_for(row, steps=3, seed=31, learning_rate=0.001, p_text_drop=0.5)
    clip = (CLIP * 255).round().to(torch.uint8).movedim(-1, 1).float() / 255
    encoded = data.encode_clips([clip], "a ball rolls", own, 4)
    trained = stages.train_method(unet, own.text, encoded, row, settings=settings)
    for key, tensor in trained.trained.adapter.state_dict().items():
        # A part that learns faster carries the encoders' rounding as much farther. One of Adam's steps is 1e-3 of it.
        faster = max([1.0, *(rate for part, rate in row.part_rates if f".{part}." in key)])
        torch.testing.assert_close(got.adapter.state_dict()[key], tensor, atol=3e-4 * faster, rtol=1e-3)
