"""The page of a sweep: the matrix as videos, measures, losses and files. It lies beside them and needs no server."""

from __future__ import annotations

import string
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..evaluation.metrics import summarise
from ..safety.paths import write_text
from .curves import read_losses, svg
from .expand import Cell, Sweep
from .job import Job
from .logs import log_path
from .results import done_before

FILE = "report.html"
ENDINGS = {
    ".safetensors": "adapter",
    ".losses.csv": "losses",
    ".losses.png": "plot",
    ".toml": "run file",
    ".log": "log",
}
KINDS = {"training": "trainings", "video": "videos", "measures": "measurements"}


@dataclass(frozen=True)
class _Found:
    """A sweep, the facts of what is done of it, and job's name -> sentence of what failed."""

    sweep: Sweep
    facts: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str]

    @property
    def out(self) -> Path:
        return self.sweep.plan.out

    def missing(self, id: str) -> str:
        """Why a job is not done."""
        return self.failed.get(self.sweep.by_id[id].name, "not made yet")


def write(sweep: Sweep, failed: Mapping[str, str]) -> Path:
    """Write the page into the sweep's folder, of all that is done; returns its path. failed: name -> sentence."""
    found = _Found(sweep, done_before(sweep.plan.out, sweep.jobs), failed)
    titles = {"measures": "Measures", "losses": "Losses", "files": "Files"}
    parts = {name: make(found) for name, make in _PARTS.items()}
    matrices = list(_matrices(found))
    links = [(anchor, title) for anchor, title, _ in matrices]
    links += [(name, title) for name, title in titles.items() if parts[name]]
    title = sweep.plan.out.name or "Sweep"
    page = string.Template(Path(__file__).with_name(FILE).read_text(encoding="utf-8")).substitute(
        parts,
        title=escape(title),
        facts=_facts(found),
        links="".join(f'<a href="#{anchor}">{escape(text)}</a>' for anchor, text in links),
        matrices="".join(html for *_, html in matrices),
    )
    write_text(sweep.plan.out / FILE, page)
    return sweep.plan.out / FILE


def _facts(found: _Found) -> str:
    jobs = found.sweep.jobs
    done, whole = (Counter(job.kind for job in jobs if all or job.id in found.facts) for all in (False, True))
    counts = ", ".join(f"{done[kind]} of {whole[kind]} {name}" for kind, name in KINDS.items() if whole[kind])
    hours = sum(_seconds(facts) for facts in found.facts.values()) / 3600
    return escape(f"{counts}; {hours:.2f} hours of work; written {time.strftime('%Y-%m-%d %H:%M')}.")


def _failures(found: _Found) -> str:
    if not found.failed:
        return ""
    items = [
        f'<li><a href="{_link(log_path(name))}">{escape(name)}</a>: {escape(text)}</li>'
        for name, text in found.failed.items()
    ]
    return _section("failed", "Failed", f"<ul>{''.join(items)}</ul>")


# ------------------------------------------------------------------------------------------------------ the matrix


def _matrices(found: _Found) -> Iterable[tuple[str, str, str]]:
    """(anchor, title, HTML) of each base, method and prompt."""
    plan = found.sweep.plan
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in found.sweep.cells:
        groups.setdefault((cell.base, cell.method, cell.prompt), []).append(cell)
    for number, ((base, method, prompt), cells) in enumerate(groups.items()):
        title = " · ".join([*([base] if len(plan.bases) > 1 else []), method])
        more = f": {prompt}" if len(plan.prompts) > 1 else ""
        table = _matrix(found, cells)
        html = _section(f"matrix-{number}", title, table, prompt)
        yield f"matrix-{number}", title + more, html


def _matrix(found: _Found, cells: Sequence[Cell]) -> str:
    """A row for each subject, a column for each motion, the seeds side by side."""
    fields: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        fields.setdefault((cell.subject, cell.motion), []).append(cell)
    subjects, motions = (list(dict.fromkeys(names)) for names in zip(*fields, strict=True))
    head = "".join(f'<th scope="col">{escape(motion) or "no motion"}</th>' for motion in motions)
    rows = []
    for subject in subjects:
        row = "".join(f"<td>{_field(found, fields.get((subject, motion), []))}</td>" for motion in motions)
        rows.append(f'<tr><th scope="row">{escape(subject) or "no subject"}</th>{row}</tr>')
    return f'<div class="wide"><table class="matrix"><tr><td></td>{head}</tr>{"".join(rows)}</table></div>'


def _field(found: _Found, cells: Sequence[Cell]) -> str:
    return f'<div class="seeds">{"".join(_shown(found, cell) for cell in cells)}</div>'


def _shown(found: _Found, cell: Cell) -> str:
    facts = found.facts.get(cell.video)
    if facts is None:
        return f'<div class="missing">{escape(found.missing(cell.video))}</div>'
    scores = found.facts.get(cell.measures, {}).get("scores", {})
    told = "".join(f"<br>{escape(name)} {value:.3f}" for name, value in scores.items())
    prompt = getattr(found.sweep.by_id[cell.video].work, "prompt", cell.prompt)
    shown = f'src="{_link(facts["files"][0])}" title="{escape(prompt)}"'
    video = f'<video {shown} loop muted playsinline controls preload="none"></video>'
    return f"<div>{video}<small>seed {cell.seed}{told}</small></div>"


# -------------------------------------------------------------------------------------------- measures, losses, files


def _measures(found: _Found) -> str:
    """Mean and 95 % interval of every measure, for each base and method."""
    scores: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for cell in found.sweep.cells:
        if cell.measures in found.facts:
            scores.setdefault((cell.base, cell.method), []).append(found.facts[cell.measures]["scores"])
    if not any(any(each) for each in scores.values()):
        return ""
    summaries = {names: summarise(each) for names, each in scores.items()}
    columns = list(dict.fromkeys(name for summary in summaries.values() for name in summary))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("base", "method", "videos", *columns))
    rows = ""
    for (base, method), summary in summaries.items():
        cells = "".join(f'<td class="number">{_interval(summary.get(name))}</td>' for name in columns)
        count = len(scores[base, method])
        rows += f'<tr><td>{escape(base)}</td><td>{escape(method)}</td><td class="number">{count}</td>{cells}</tr>'
    note = "Mean over the videos, and its 95 % bootstrap interval."
    return _section("measures", "Measures", f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>', note)


def _interval(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:.3f}<br><small>{value['low']:.3f} to {value['high']:.3f}</small>"


def _losses(found: _Found) -> str:
    figures = []
    for job, facts in _done(found, "training"):
        table = next((name for name in facts["files"] if name.endswith(".losses.csv")), None)
        curves = {} if table is None else read_losses(found.out / table)
        if curves:
            name = escape(job.name.partition("/")[2])
            figures.append(f"<figure>{svg(curves)}<figcaption>{name}</figcaption></figure>")
    if not figures:
        return ""
    return _section("losses", "Losses", f'<div class="losses">{"".join(figures)}</div>')


def _files(found: _Found) -> str:
    rows = []
    for job, facts in _done(found, "training"):
        names = [*facts["files"], log_path(job.name)]
        links = ", ".join(f'<a href="{_link(name)}">{escape(_kind(name))}</a>' for name in names)
        name, hashed = escape(job.name.partition("/")[2]), escape(str(facts.get("sha256", "")))
        cells = f'<td>{name}</td><td>{links}</td><td class="number">{_seconds(facts):.0f}</td>'
        rows.append(f"<tr>{cells}<td><code>{hashed}</code></td></tr>")
    if not rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("training", "files", "seconds", "SHA-256 of the adapter"))
    return _section("files", "Files", f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>')


def _section(anchor: str, title: str, html: str, facts: str = "") -> str:
    told = f'<p class="facts">{escape(facts)}</p>' if facts else ""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{told}{html}</section>'


def _kind(name: str) -> str:
    return next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), Path(name).name)


def _done(found: _Found, kind: str) -> Iterable[tuple[Job, Mapping[str, Any]]]:
    return ((job, found.facts[job.id]) for job in found.sweep.jobs if job.kind == kind and job.id in found.facts)


def _seconds(facts: Mapping[str, Any]) -> float:
    seconds = facts.get("seconds")
    return float(seconds) if isinstance(seconds, (int, float)) else 0.0


def _link(name: str) -> str:
    """A file below the page's folder, as an address beside the page: percent-encoded (RFC 3986) but for the slash."""
    plain = string.ascii_letters + string.digits + "-._~/"
    return "".join(chr(byte) if chr(byte) in plain else f"%{byte:02X}" for byte in name.encode())


_PARTS = {"failures": _failures, "measures": _measures, "losses": _losses, "files": _files}
