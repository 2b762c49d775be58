"""Sweeps in one process: what is made of a plan, what is made again, what the page shows."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_media import adapters, plan, write_media
from tiny_base import SIDE

import dreamvideo
from dreamvideo.commands.cli import main
from dreamvideo.sweep import costs, curves, report, work
from dreamvideo.sweep.expand import expand
from dreamvideo.sweep.job import Ended, Job
from dreamvideo.sweep.reading import read_plan
from dreamvideo.sweep.schedule import run


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def done(media):
    """The folder of a whole sweep."""
    assert main(["sweep", str(plan(media)), "--out", str(media / "done")]) == 0
    return media / "done"


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != report.FILE}


def sweep(folder, out, *more):
    return main(["sweep", str(folder), "--out", str(out), *more])


# ------------------------------------------------------------------------------------------------------------- the jobs


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_job_ends_once_and_after_what_it_needs(data):
    count = data.draw(st.integers(0, 12))
    needs = [data.draw(st.sets(st.integers(0, index - 1)) if index else st.just(set())) for index in range(count)]
    bad = data.draw(st.sets(st.integers(0, max(0, count - 1))))
    room = data.draw(st.integers(1, 4))
    jobs = [Job(f"x/{i}", str(i), dict, tuple(map(str, sorted(needs[i])))) for i in range(count)]
    flying, order = [], []

    class Engine:
        def has_room(self):
            return len(flying) < room

        def submit(self, job):
            assert {other for other in order if order} >= set(job.needs)
            flying.append(job)

        def wait(self):
            job = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            return [(job, Ended(error="bad" if int(job.id) in bad else ""))]

        def close(self): ...

    class Told:
        def started(self, job): ...

        def ended(self, job, ended):
            if not ended.error:
                order.append(job.id)
            ends.append(job.id)

        def impossible(self, job, because):
            ends.append(job.id)
            impossible.add(job.id)

        def waited(self): ...

    ends, impossible = [], set()
    run(jobs, Engine(), Told())
    assert sorted(ends) == sorted(job.id for job in jobs)
    lost = set()
    for index in range(count):
        if needs[index] & (lost | bad):
            lost.add(index)
    assert impossible == {str(index) for index in lost}


def test_adapters_are_those_of_the_command_line(media, done, tmp_path):
    common = ["--steps", "2", "--lr", "0.1", "--save-every", "1", "--height", SIDE, "--width", SIDE]
    common += ["--base", media / "base", "--device", "cpu"]
    subject = ["train", "subject", media / "subjects" / "dog-1", "--class-word", "dog", "--placeholder", "<my-dog-1>"]
    subject += ["--token-steps", "2", "--batch", "1", "--out", tmp_path / "dog.safetensors"]
    motion = [
        "train",
        "motion",
        media / "motions" / "turn-2.gif",
        "--frames",
        "2",
        "--out",
        tmp_path / "turn.safetensors",
    ]
    for name, command in (("dog-1", subject), ("turn-2", motion)):
        assert main([str(part) for part in [*command, *common]]) == 0
        made = next((done / "adapters").rglob(f"{name}-*.safetensors"))
        assert made.read_bytes() == Path(command[-1]).read_bytes()
        again = made.with_suffix(".toml")
        assert re.findall("^seed.*|^learning_rate.*", again.read_text(), re.M)
        assert not made.with_suffix(".state").exists()


def test_what_is_done_is_not_made_again_and_what_is_gone_is(media, done, capsys):
    before = times(done)
    assert sweep(plan(media), done) == 0
    assert times(done) == before and "To do: nothing." in capsys.readouterr().out
    gone = next((done / "videos").rglob("*.mp4"))
    gone.unlink()
    assert sweep(plan(media), done) == 0
    assert gone.exists() and "To do: 1 video." in capsys.readouterr().out
    result = next((done / "jobs").rglob("*.json"))
    result.write_text("{")  # as a disk that was pulled out may leave it
    assert sweep(plan(media), done) == 0
    assert "To do: 1 " in capsys.readouterr().out and len(result.read_text()) > 10


def test_parts_of_a_sweep(media, tmp_path, capsys):
    assert sweep(plan(media), tmp_path / "out", "--dry-run", "--only", "*/dog-2-*", "--only", "training/*/dog-1") == 0
    out = capsys.readouterr().out
    assert "To do: 4 trainings, 2 videos, 2 measurements." in out and "of work" in out
    assert not (tmp_path / "out").exists()
    assert sweep(plan(media), tmp_path / "out", "--only", "*cat*") == 2
    assert (
        "No job is named like '*cat*'; names are such as video/base/dreamvideo/dog-1-turn-1" in capsys.readouterr().err
    )
    assert sweep(plan(media, measure=False), tmp_path / "out", "--limit", "1") == 0
    assert "To do: 2 trainings, 1 video." in capsys.readouterr().out
    assert len(list((tmp_path / "out").rglob("*.mp4"))) == 1


def test_what_fails_holds_up_none_but_its_own(media, done, tmp_path, capsys):
    shutil.copytree(media, tmp_path / "plan", ignore=shutil.ignore_patterns("done"))
    photo = tmp_path / "plan" / "subjects" / "dog-2" / "00.png"
    photo.write_bytes(photo.read_bytes()[:60])
    shutil.copytree(done, tmp_path / "out")
    assert sweep(plan(tmp_path / "plan"), tmp_path / "out") == 2
    told = capsys.readouterr()
    assert (
        "1 of 5 jobs failed; 4 jobs that need them were not possible: training/base/subject/dreamvideo/dog-2"
        in told.err
    )
    assert "00.png" in told.err and "4 not possible" in told.out
    page = (tmp_path / "out" / report.FILE).read_text()
    assert page.count("<video") == 2 and "Failed" in page and "00.png" in page
    log = (tmp_path / "out" / "logs" / "training" / "base" / "subject" / "dreamvideo" / "dog-2.log").read_text()
    assert "Traceback" in log


def test_a_full_disk_fails_one_job_and_loses_nothing(media, done, tmp_path, capsys, monkeypatch):
    shutil.copytree(done, tmp_path / "out")
    for path in (tmp_path / "out" / "videos").rglob("*.mp4"):
        path.unlink()

    def full(path, *rest):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("dreamvideo.safety.paths._sync", full)
        assert sweep(plan(media), tmp_path / "out") == 2
    assert "no space left on device" in capsys.readouterr().err.lower()
    assert adapters(tmp_path / "out") == adapters(done)
    assert sweep(plan(media), tmp_path / "out") == 0


def test_ctrl_c_keeps_what_is_done(media, done, tmp_path, capsys, monkeypatch):
    shutil.copytree(done, tmp_path / "out")
    for path in list((tmp_path / "out" / "videos").rglob("*.mp4"))[:2]:
        path.unlink()

    def pressed(*given, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(work, "sample", pressed)
        assert sweep(plan(media), tmp_path / "out") == 130
    assert "Stopped after 0 of 2 jobs; the same command goes on" in capsys.readouterr().err
    assert (tmp_path / "out" / report.FILE).read_text().count("<video") == 2
    assert sweep(plan(media), tmp_path / "out") == 0


def test_without_ray_its_absence_is_told(media, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert sweep(plan(media), tmp_path / "out", "--ray") == 2
    assert 'pip install "dreamvideo[ray]"' in capsys.readouterr().err


def test_ray_is_imported_inside_of_functions_alone():
    for path in Path(dreamvideo.__file__).parent.rglob("*.py"):
        assert not re.search(r"^(import|from) ray\b", path.read_text(encoding="utf-8"), re.M), path


def test_costs_are_steps_and_what_comes_beside():
    training = work.Training(None, "subject", (), "lora", "", "", "", steps={"token": 10, "identity": 20})
    job = Job("training/base/subject/lora/dog", "1", training)
    found = costs.Costs({"training/base/subject/lora": {"beside": 5.0, "steps": {"token": 0.5, "identity": 2.0}}})
    assert found.of(job) == 5 + 10 * 0.5 + 20 * 2
    found.learn(job, 30.0)
    found.learn(job, 40.0)
    assert found.of(job) == 35


# ------------------------------------------------------------------------------------------------------------- the page


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs): ...

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_leads_to_files_beside_it(done):
    text = (done / report.FILE).read_text(encoding="utf-8")
    page = _Page(text)
    assert not page.open and text.count("<video") == 4 and text.count("<svg") == 4
    files = [link for link in page.links if not link.startswith("#")]
    assert len(files) == 4 + 4 * 5 and all((done / unquote(link)).is_file() for link in files)
    assert "http" not in text and "Likeness" in text and "dog-2" in text


def test_the_page_shows_names_as_text(media, tmp_path):
    more = 'prompts = ["a <b>{subject}</b> & {motion}"]\n'
    text = plan(media, more=more).joinpath("sweep.toml").read_text().replace('prompts = ["a {subject} {motion}"]\n', "")
    (media / "sweep.toml").write_text(
        text + '[[subjects]]\nname = "a & b"\nimages = "subjects/dog-1"\nclass_word = "dog"\n'
    )
    whole = expand(replace(read_plan(media / "sweep.toml"), out=tmp_path))
    page = report.write(whole, {"x<i>": "<script>"})
    text = page.read_text(encoding="utf-8")
    assert "<b>" not in text and "a &amp; b" in text and text.count("<script>") == 1 and "x&lt;i&gt;" in text


def test_a_curve_holds_every_stage_and_few_points():
    drawn = curves.svg({"token": [1.0] * 5000, "identity": [0.5]})
    assert drawn.count("<polyline") == 2 and "5000 steps" in drawn
    assert len(re.search('points="([^"]*)"', drawn)[1].split()) == curves.POINTS
