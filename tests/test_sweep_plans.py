"""Plans of sweeps: a folder or a file, what is refused, and what jobs come of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sweep_media import plan, write_media

from dreamvideo.commands.cli import main
from dreamvideo.sweep.expand import expand
from dreamvideo.sweep.reading import read_plan

PAPER = Path(__file__).parents[1] / "docs" / "paper_sweep.toml"


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("sweep"))


def test_a_folder_is_a_plan(media):
    found = read_plan(plan(media))
    assert [(each.name, each.class_word, each.placeholder) for each in found.subjects] == [
        ("dog-1", "dog", "<my-dog-1>"),
        ("dog-2", "dog", "<my-dog-2>"),
    ]
    assert [(each.name, each.caption, each.words) for each in found.motions] == [
        ("turn-1", "a dog does a turn-1", "turn 1"),
        ("turn-2", "a dog does a turn-2", "turn 2"),
    ]
    (media / "subjects" / "dog-1" / "class_word.txt").write_text("plush toy\n")
    (media / "prompts.txt").write_text("a {subject}\n")
    more = '[[subjects]]\nname = "dog-2"\nimages = "subjects/dog-2"\nclass_word = "cat"\nseed = 3\n'
    (media / "sweep.toml").write_text(more)
    changed = read_plan(media)
    assert {each.name: each.class_word for each in changed.subjects} == {"dog-1": "plush toy", "dog-2": "cat"}
    assert changed.prompts == ("a {subject}",) and changed.subjects[0].options == {"seed": 3}
    for name in ("subjects/dog-1/class_word.txt", "prompts.txt"):
        (media / name).unlink()


def test_the_papers_plan_is_one():
    found = read_plan(PAPER)
    assert len(found.subjects) == 20 and len(found.motions) == 30
    assert found.training["subject"]["steps"] == 800 and found.measuring.clip and found.measuring.dino


SUBJECT = '[[subjects]]\nname = "dog"\nimages = "x"\nclass_word = "dog"\n'
WRONG = {
    "sedes = [1]": "did you mean seeds?",
    "seeds = [-1]": "seed is a whole number of at least 0",
    "seeds = []": "a list of whole numbers, or how many",
    'methods = ["custom_diffusion"]': "for both; there are dreamvideo",
    'methods = [{subject = "lora", motion = "dreamix"}]': "there is no motion method 'dreamix'; there are dreamvideo",
    "methods = 3": "a list of names or of tables",
    'prompts = ["a {dog}"]': "has {dog}; there are {subject} and {motion}",
    'prompts = [" "]': "a prompt is empty",
    "motions = 3": "a list of tables, not 3",
    "[training.subject]\nsteps = 0": "steps is a whole number of at least 1",
    "[training.subject]\nstepps = 1": "did you mean steps?",
    "[training.motion]\nmasked = 1": "masked is true or false, not 1",
    "[sampling]\nguidance = 'much'": "guidance is a number from",
    '[measure]\ndino_weights = "x"': "dino_weights go with clip_weights",
    '[[bases]]\ndtype = "int8"': "dtype is float32, bfloat16 or float16, not 'int8'",
    '[[subjects]]\nname = "a/b"\nimages = "x"\nclass_word = "dog"': "holds '/'",
    '[[subjects]]\nname = "DOG"\nimages = "x"\nclass_word = "dog"': "are named 'dog' and 'DOG'",
    '[[subjects]]\nname = "cat"\nclass_word = "cat"': "lacks images",
    '[[subjects]]\nname = "cat"\nimages = "x"': "lacks class_word",
    '[[motions]]\nname = "dance"': "lacks clips",
    "x = [": "its TOML is damaged",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_plan_is_told_in_one_sentence(tmp_path, capsys, text):
    file = tmp_path / "plan.toml"
    file.write_text(f"{text}\n{SUBJECT}" if "[" not in text.split("=")[0] else f"{SUBJECT}{text}\n")
    assert main(["sweep", str(file)]) == 2
    error = capsys.readouterr().err
    assert WRONG[text] in error and str(file) in error and error.count("\n") == 1 and error[-2] in ".?"


def test_a_motion_that_gets_a_word_needs_it_in_its_caption(media, capsys):
    more = 'methods = [{name = "own word", motion = "customizing_motion"}]\n'
    assert main(["sweep", str(plan(media, more=more)), "--dry-run"]) == 2
    assert "does not hold the words 'turn 1'" in capsys.readouterr().err
    motion = '[[motions]]\nname = "turn-{0}"\nclips = "motions/turn-{0}.gif"\nwords = "does a turn-{0}"\n'
    (media / "sweep.toml").write_text(plan(media, more=more).joinpath("sweep.toml").read_text() + motion.format(1))
    (media / "sweep.toml").write_text((media / "sweep.toml").read_text() + motion.format(2))
    jobs = expand(read_plan(media)).jobs
    assert [job.work.captions for job in jobs if job.kind == "training"] == [("a dog <my-motion>",)] * 2
    assert {job.work.prompt for job in jobs if job.kind == "video"} == {"a dog <my-motion>"}


def test_ids_follow_contents_and_nothing_else(media, tmp_path):
    before = expand(read_plan(plan(media)))
    assert [job.kind for job in before.jobs].count("training") == 4 and len(before.cells) == 4
    shutil.copytree(media, tmp_path / "elsewhere")
    moved = expand(read_plan(tmp_path / "elsewhere"))
    assert [job.id for job in moved.jobs] == [job.id for job in before.jobs]
    grown = expand(read_plan(plan(media, more='methods = ["dreamvideo", "lora"]\nseeds = 2\n')))
    assert {job.id for job in before.jobs} < {job.id for job in grown.jobs} and len(grown.cells) == 16
    assert [job.kind for job in grown.jobs].count("training") == 8  # seeds share them
    longer = expand(read_plan(plan(media, steps=3)))
    assert not {job.id for job in before.jobs} & {job.id for job in longer.jobs}
    photo = tmp_path / "elsewhere" / "subjects" / "dog-1" / "00.png"
    shutil.copy(tmp_path / "elsewhere" / "subjects" / "dog-2" / "00.png", photo)
    other = {job.name for job in expand(read_plan(tmp_path / "elsewhere")).jobs if job.id not in moved.by_id}
    assert other == {job.name for job in before.jobs if "dog-1" in job.name}
