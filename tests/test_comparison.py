"""The comparison's runner: a sliver of it on a base of random weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_base import write_tiny_base

from dreamvideo import defaults
from dreamvideo.base import open_base
from dreamvideo.commands.cli import main
from dreamvideo.files.tensors import write_safetensors
from dreamvideo.media.writing import write_animation, write_png
from dreamvideo.nano import comparison, pieces, report, suite, world
from dreamvideo.nano.comparison import TABLES, System, Table
from dreamvideo.training.loop import Callbacks
from dreamvideo.training.methods import (
    IDENTITY,
    IDENTITY_PLUS,
    METHODS,
    MOTION_BEYOND,
    TEXTUAL_INVERSION,
    TUNE_A_VIDEO,
    word_method,
)

SLIVER = suite.Scale(("mushroom",), ("circling",), ("on the road",), seeds=1, share=1e-9, sampling_steps=1)
TABLE = Table(
    "1",
    "a sliver",
    "joint",
    (
        comparison.BASE,
        System("LoRA", METHODS["lora_subject"], METHODS["lora_motion"]),
        System("mixed", IDENTITY, METHODS["customizing_motion"]),
    ),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return open_base(write_tiny_base(tmp_path_factory.mktemp("base")), device="cpu")


@pytest.fixture(scope="module")
def done(base, tmp_path_factory):
    """A folder with the sliver in it, the results, and the times that training was told of."""
    tools = suite.Tools(base, tmp_path_factory.mktemp("run"), SLIVER, report=lambda text: None)
    return tools, suite.measure(tools, [TABLE])


def files(tools: suite.Tools) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in tools.folder.rglob("*") if path.is_file()}


def test_every_training_and_every_video_is_made_once(done):
    tools, results = done
    adapters = {path.parent.name for path in (tools.folder / "adapters").rglob("*.safetensors")}
    assert adapters == {"lora_subject", "lora_motion", "identity", "textual_inversion", "customizing_motion"}
    assert len(list((tools.folder / "videos").rglob("*.png"))) == 3
    assert list(results["1"]) == ["base, nothing learned", "LoRA", "mixed"]
    for measured in results["1"].values():
        assert set(measured.scores[0]) == set(report.COLUMNS)
        assert all(0 <= value <= 1 for value in measured.scores[0].values())
    assert results["1"]["base, nothing learned"].parameters == 0 < results["1"]["LoRA"].parameters
    before = files(tools)
    again = suite.measure(tools, [TABLE])
    assert files(tools) == before and again["1"]["mixed"].scores == results["1"]["mixed"].scores
    assert suite.seconds_spent(tools.folder) > 0


def test_some_systems_start_from_the_image_base_beside_it(base, tmp_path):
    from tiny_base import UNET
    from tiny_image_base import IMAGE, image_state, motion_state, network

    folder = tmp_path / "base"
    shutil.copytree(base.files.unet.parent, folder)
    video = open_base(folder, device="cpu")
    systems = (
        System("fine-tuned", METHODS["lora_subject"], METHODS["lora_motion"], start=comparison.WITH_MODULE),
        System("Tune-A-Video", motion=TUNE_A_VIDEO, start=comparison.PICTURES),
    )
    tools = suite.Tools(video, tmp_path / "run", SLIVER, report=lambda text: None)
    with pytest.raises(ValueError, match="no folder image with an image base.*choose other tables"):
        suite.measure(tools, [replace(TABLE, systems=systems)])
    net = network(replace(IMAGE, context_dim=UNET.context_dim, motion_frames=world.FRAMES))
    write_safetensors(folder / "image" / "unet.safetensors", image_state(net), {})
    write_safetensors(folder / "image" / "motion_module.safetensors", motion_state(net), {})
    found = suite.measure(tools, [replace(TABLE, systems=systems)])["1"]
    adapters = {path.relative_to(tools.folder).as_posix() for path in tools.folder.rglob("adapters/*/*/*.safetensors")}
    assert adapters == {
        "adapters/image/lora_subject/mushroom.safetensors",
        "adapters/image/lora_motion/circling.safetensors",
        "adapters/pictures/tune_a_video/circling.safetensors",
    }
    for name, start in (("fine-tuned", "image"), ("Tune-A-Video", "pictures")):
        assert f"/videos/{start}/" in found[name].strips[0].as_posix() and found[name].parameters > 0


def test_tables_and_figure_say_what_was_measured(done):
    tools, results = done
    written = report.write(tools.folder / "out", [TABLE], results, SLIVER, 90.0)
    assert [path.name for path in written] == ["tables.md", "tables.json", "strips.png"]
    text = written[0].read_text()
    assert "## Table 1: a sliver" in text and text.count("\n| ") == 5 and "2 minutes" in text
    facts = json.loads(written[1].read_text())
    row = facts["tables"]["1"]["LoRA"]
    assert facts["seconds"] == 90 and row["subject"]["low"] <= row["subject"]["mean"] <= row["subject"]["high"]
    assert written[2].stat().st_size


def test_a_mark_says_which_systems_differ_from_the_last_one_video_by_video(tmp_path):
    def measured(*values: float) -> suite.Measured:
        return suite.Measured([dict.fromkeys(report.COLUMNS, value) for value in values], [strip] * len(values), 1)

    strip = tmp_path / "strip.png"
    write_png(strip, torch.zeros(3, world.SIZE, 2 * world.SIZE))
    # Videos differ far more from each other than the systems on one video.
    rows = {"LoRA": (0.1, 0.5, 0.9), "base, nothing learned": (0.0, 0.4, 0.8), "mixed": (0.05, 0.45, 0.85)}
    results = {"1": {name: measured(*values) for name, values in rows.items()}}
    text = report.write(tmp_path, [TABLE], results, SLIVER, 1.0)[0].read_text()
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "▲" in lines["LoRA"] and "▼" in lines["base, nothing learned"]
    assert not {"▲", "▼"} & set(lines["mixed"])
    behind = json.loads((tmp_path / "tables.json").read_text())["tables"]["1"]["LoRA"]["behind"]["motion"]
    assert behind["mean"] == pytest.approx(-0.05) and behind["high"] < 0


def test_the_command_goes_on_and_writes_what_was_found(base, done, monkeypatch, capsys):
    tools, _ = done
    monkeypatch.setattr(suite, "QUICK", SLIVER)
    monkeypatch.setattr(comparison, "TABLES", (TABLE,))
    before = {path: at for path, at in files(tools).items() if "adapters" in path or "videos" in path}
    command = ["evaluate", "--suite", "nano", "--quick", "--table", "1", "--out", str(tools.folder), "--device", "cpu"]
    assert main([*command, "--base", str(base.files.unet.parent)]) == 0
    out = capsys.readouterr().out
    assert "Table 1: mixed" in out and "tables.md" in out and "of work" in out
    assert before.items() <= files(tools).items() and (tools.folder / "strips.png").stat().st_size


def test_one_table_leaves_the_others(base, done, tmp_path, monkeypatch, capsys):
    tools, _ = done
    shutil.copytree(tools.folder, tmp_path / "run")
    monkeypatch.setattr(suite, "QUICK", SLIVER)
    monkeypatch.setattr(comparison, "TABLES", (TABLE, replace(TABLE, number="2", systems=TABLE.systems[:1])))
    command = ["evaluate", "--suite", "nano", "--quick", "--out", str(tmp_path / "run"), "--device", "cpu"]
    command += ["--base", str(base.files.unet.parent)]
    assert main([*command, "--table", "1"]) == 0
    before = (tmp_path / "run" / "tables.md").read_text().split("## ")
    assert main([*command, "--table", "2"]) == 0
    after = (tmp_path / "run" / "tables.md").read_text().split("## ")
    assert len(after) == 3 and after[1].strip() == before[1].strip() and after[2].startswith("Table 2")
    capsys.readouterr()
    assert main([*command, "--table", "9"]) == 2 and "There is no table '9'; there are 1, 2." in capsys.readouterr().err
    assert (tmp_path / "run" / "tables.md").read_text().split("## ") == after


@pytest.mark.parametrize("name", ["run.json", "x.seconds.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000])
def test_a_note_that_is_damaged_is_named(base, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    tools = suite.Tools(base, tmp_path, SLIVER, report=lambda text: None)
    with pytest.raises(ValueError, match=f"{name} is not as a run left it; delete it"):
        suite.measure(tools, [])
        suite.seconds_spent(tmp_path)


def test_a_stopped_comparison_goes_on(base, tmp_path, monkeypatch):
    stop = suite.Tools(
        base, tmp_path, SLIVER, report=lambda text: None, training=lambda what: Callbacks(should_stop=lambda: True)
    )
    with pytest.raises(KeyboardInterrupt, match="goes on"):
        suite.measure(stop, [TABLE])
    assert not list(tmp_path.rglob("lora_subject/mushroom.safetensors"))
    other = suite.Tools(base, tmp_path, suite.QUICK, report=lambda text: None)
    with pytest.raises(ValueError, match="another scale"):
        suite.measure(other, [TABLE])
    monkeypatch.setattr(defaults, "EMBEDDED", replace(defaults.EMBEDDED, rates={"lora_motion": 2.0}))
    with pytest.raises(ValueError, match="other training settings"):
        suite.measure(stop, [TABLE])


def test_a_job_that_fails_is_told_after_all_others_are_done(base, tmp_path, monkeypatch):
    def train(*given, **more):
        if given[3].name == "lora_subject":
            raise ValueError("no luck.")
        return train_method(*given, **more)

    train_method = pieces.train_method
    monkeypatch.setattr(pieces, "train_method", train)
    tools = suite.Tools(base, tmp_path, SLIVER, report=lambda text: None)
    with pytest.raises(ValueError, match="One job failed: training/lora_subject/mushroom: no luck. The same command"):
        suite.measure(tools, [TABLE])
    assert len(list((tmp_path / "videos").rglob("*.png"))) == 2
    monkeypatch.setattr(pieces, "train_method", train_method)
    assert len(suite.measure(tools, [TABLE])["1"]) == 3


def test_prompts_name_what_a_system_has_learned():
    case = suite.Case("mushroom", "circling", "on the road", 0)
    mixed, known = TABLE.systems[2], suite.Case("red-circle", "circling", "on the road", 0)
    assert suite.prompt_for(mixed, case) == "a <my-toy> <my-motion> on the road"
    assert suite.prompt_for(comparison.BASE, case) == "a toy circling on the road"
    assert suite.prompt_for(mixed, known) == "a red circle <my-motion> on the road"
    moving = suite.Case("mushroom", "moving right", "on the road", 0)
    assert suite.prompt_for(mixed, moving) == "a <my-toy> moving right on the road"


def test_the_truth_scores_high_and_another_truth_low():
    case = suite.Case("mushroom", "circling", "on the road", 0)
    truth = world.render(world.Scene(case.looks, case.motion, case.place)).frames
    assert min(suite.score(truth, case).values()) > 0.85
    wrong = world.render(world.Scene(world.Subject("cross", "blue"), "moving left", "on the sand")).frames
    scores = suite.score(wrong, case)
    assert scores["subject"] < 0.4 and scores["motion"] < 0.6 and scores["context"] == 0


def test_the_tables_are_the_papers_and_every_method_is_compared():
    assert [table.number for table in TABLES] == ["1", "2", "3", "5", "A1", "A4", "A5", "B1", "B2", "B3"]

    def rows(tables) -> set[str]:
        return {
            row.name for table in tables for system in table.systems for row in (system.subject, system.motion) if row
        }

    assert METHODS.keys() - rows(TABLES) == {"motion_several"}
    assert not rows(comparison.PAPERS) & {IDENTITY_PLUS.name, *(row.name for row in MOTION_BEYOND)}
    assert all(len({system.name for system in table.systems}) == len(table.systems) for table in TABLES)
    for scale, videos in ((suite.FULL, 8 * 6 // 2), (suite.QUICK, 2)):
        for table in TABLES:
            wanted = suite.cases(table.task, scale)
            assert len(wanted) == videos == len({case.seed for case in wanted})
            assert len({case.subject for case in wanted}) == len(scale.subjects)
            assert len({case.motion for case in wanted}) == len(scale.motions)
            assert all(case.new_subject == (table.task != "motion") for case in wanted)
            assert all(case.new_motion == (table.task not in ("subject", "two")) for case in wanted)
            assert all(bool(case.other) == (table.task == "two") for case in wanted)


def missing_from(page: str, facts: dict, count: int | None = None) -> list[str]:
    """Which lines of these facts' tables a page lacks. count: rows of the first so many tables alone, no headings."""
    project = Path(report.__file__).parents[2]
    tables = [table for table in TABLES if table.number in facts["tables"]][:count]
    shown = (project / page).read_text(encoding="utf-8").splitlines()
    lines = report.markdown(tables, facts["tables"], suite.FULL, facts["seconds"]).splitlines()
    return [line for line in lines if line not in shown and (count is None or line.startswith("| "))]


def test_the_docs_hold_the_tables_as_they_came_out():
    docs = Path(report.__file__).parents[2] / "docs"
    today, before = (
        json.loads((docs / name).read_text(encoding="utf-8")) for name in ("comparison.json", "comparison_before.json")
    )
    assert {table.number for table in comparison.PAPERS} <= today["tables"].keys() | before["tables"].keys()
    assert not today["tables"].keys() & before["tables"].keys()
    assert not missing_from("docs/comparison.md", today)
    assert not missing_from("docs/comparison.md", before, count=len(before["tables"]))
    assert not missing_from("README.md", today, count=1)


def test_two_subjects_are_each_looked_for_in_its_half():
    case = suite.Case("mushroom", "jumping", "on the road", 0, other="house")
    both = world.render(case.truth).frames
    assert min(suite.score(both, case).values()) > 0.8
    swapped = suite.score(
        world.render(replace(case.truth, subject=case.truth.companion, companion=case.looks)).frames, case
    )
    alone = suite.score(world.render(replace(case.truth, companion=None)).frames, case)
    subject = suite.score(both, case)["subject"]
    assert max(swapped["subject"], alone["subject"]) < subject - 0.2


def test_two_subjects_get_a_word_and_where_asked_for_a_region_each(base, tmp_path):
    tools = suite.Tools(base, tmp_path, SLIVER, report=lambda text: None)
    (table,) = [table for table in TABLES if table.task == "two"]
    nothing, plain, regions, _, apart = table.systems
    (case,) = suite.cases("two", SLIVER)
    assert suite.prompt_for(nothing, case) == "a toy and a toy moving left on the road"
    assert suite.prompt_for(plain, case) == "a <my-toy> and a <other-toy> moving left on the road"
    results = suite.measure(tools, [table])["B3"]
    strips = {name: measured.strips[0] for name, measured in results.items()}
    assert len(set(strips.values())) == 5
    assert len({path.read_bytes() for path in strips.values()}) == 4  # the one step lies within half of the way
    learned = list(pieces.learned(tools, regions, case))
    given = pieces._customization(regions, case, learned)
    assert list(given.tokens) == ["<my-toy>", "<other-toy>"]
    assert not torch.equal(*given.tokens.values())
    left, right = given.regions
    assert {region.apart for region in given.regions} == {0}
    assert {region.apart for region in pieces._customization(apart, case, learned).regions} == {1}
    assert "<my-toy>" in left.prompt and "<other-toy>" in right.prompt and torch.equal(left.mask, 1 - right.mask)
    assert all(
        torch.equal(*pair)
        for pair in zip((entry.mask[0] for entry in given.entries), (left.mask, right.mask), strict=True)
    )


def test_schedules_share_trainings_and_never_a_video(base, tmp_path):
    tools = suite.Tools(base, tmp_path, SLIVER, report=lambda text: None)
    (table,) = [table for table in TABLES if table.number == "B2"]
    results = suite.measure(tools, [replace(table, systems=table.systems[-3:])])["B2"]
    assert len({measured.strips[0] for measured in results.values()}) == 3
    trained = {path.parent.name for path in (tmp_path / "adapters").rglob("*.safetensors")}
    assert trained == {"identity_plus", "motion_plus", "textual_inversion_mask_attention"}
    (case,) = suite.cases("joint", SLIVER)
    scheduled = table.systems[-3]
    entries = pieces._customization(scheduled, case, list(pieces.learned(tools, scheduled, case))).entries
    assert [entry.ramp for entry in entries] == [(0.5, 1.5), (1.5, 0.5)]
    assert [entry.guided_from for entry in entries] == [IDENTITY_PLUS.guided_from, 1.0]  # as the files say


def test_a_word_is_learned_with_the_options_of_the_row_that_asks_for_it():
    assert word_method(IDENTITY) == TEXTUAL_INVERSION == pieces._word(IDENTITY)
    both = replace(IDENTITY, layered_token=True, mask_attention=True)
    assert word_method(both) == replace(TEXTUAL_INVERSION, layered_token=True, mask_attention=True)
    assert pieces._word(both).name == "textual_inversion_layered_token_mask_attention"


def test_own_videos_get_the_papers_metrics(tmp_path, capsys, monkeypatch):
    clip = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    write_animation(tmp_path / "videos" / "a.gif", clip, 8)
    write_png(tmp_path / "photos" / "00.png", clip[0])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a.gif|||a dog is dancing\n\n")
    command = ["evaluate", "--videos", str(tmp_path / "videos"), "--images", str(tmp_path / "photos")]
    command += ["--prompts", str(prompts), "--out", str(tmp_path)]
    assert main(command) == 2 and "CLIP ViT-B/32 are missing" in capsys.readouterr().err

    from dreamvideo.evaluation.metrics import Embedders

    def unit(images):
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)

    embedders = Embedders(unit, lambda prompts: torch.eye(3)[: len(prompts)], unit)
    monkeypatch.setattr("dreamvideo.commands.evaluate.load_embedders", lambda *given: embedders)
    assert main(command) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores["videos"]["a.gif"]) == {"CLIP-T", "CLIP-I", "DINO-I", "Temporal consistency"}
    assert scores["summary"]["CLIP-I"]["videos"] == 1
    prompts.write_text("no separator\n")
    assert main(command) == 2 and "Line 1 of" in capsys.readouterr().err
    assert main(["evaluate"]) == 2 and "Say what to evaluate" in capsys.readouterr().err
