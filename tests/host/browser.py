"""Looks at the templates, the nodes, a help page and a translation in a real browser, and takes their pictures.

    python tests/host/browser.py http://127.0.0.1:8188 OUT [templates|run|nodes|help|browse]...
        [--only NAME] [--zh] [--new-design]

Needs a running ComfyUI with this pack in its custom_nodes, Debian's chromium, and `pip install playwright` (its own
browser is not used). Start the server with `--base-directory B` and {"Comfy.TutorialCompleted": true} in
B/user/default/comfy.settings.json, or the first visit shows a tour over everything.

templates: loads every workflows/*.json and prints what is wrong with it: missing nodes, nodes that ComfyUI marks as
bad, nodes and groups that overlap, notes that do not show their whole text, values that would be queued and are not
the template's, errors of the browser's console. --new-design: with "Nodes 2.0", whose nodes are parts of the page.
run: the same, but runs each template first (--only NAME) on the embedded base, so that previews show; with few steps
unless --full.
nodes: one picture of every node into OUT/nodes, as docs/nodes.md shows them. help: the help page of a node.
browse: the dialog that offers the templates. Pictures are written to OUT; the exit status is 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from itertools import combinations
from pathlib import Path

from harness import PACK
from over_http import Server
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from subgraphs import to_api

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    f"--{flag}"
    for flag in ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
                 "disable-component-update", "disable-sync")
]  # fmt: skip
QUIET = ("favicon", "Failed to load resource", "api.comfy.org", "ERR_", "GTM", "userdata", "api/queue")
FEW = {"steps": 6, "token_steps": 6, "steps_of_word": 6, "steps_of_looks": 6, "preview_every": 0}
TOY = {"base": "embedded", "width": 128, "height": 128, "frames": 8, "learning_rate": 0, "token_learning_rate": 0}
# For pictures: text at every zoom, no map in the corner.
PLAIN = {"LiteGraph.Canvas.MinFontSizeForLOD": 0, "Comfy.Minimap.Visible": False}
BOXES = """() => app.graph._nodes.map(node => {
    const title = LiteGraph.NODE_TITLE_HEIGHT;
    const text = node.widgets?.map(w => w.element).find(e => e?.classList?.contains('comfy-markdown')
        || e?.querySelector?.('.comfy-markdown-content'));
    const page = text?.querySelector('.comfy-markdown-content') ?? text;
    let box = [node.pos[0], node.pos[1] - title, node.size[0], node.size[1] + title];
    const part = document.querySelector(`[data-node-id="${node.id}"]`);
    if (part) {
        const seen = part.getBoundingClientRect(), whole = app.canvas.canvas.getBoundingClientRect();
        const ds = app.canvas.ds;
        box = [(seen.left - whole.left) / ds.scale - ds.offset[0], (seen.top - whole.top) / ds.scale - ds.offset[1],
            seen.width / ds.scale, seen.height / ds.scale];
    }
    return {id: node.id, type: node.type, title: node.title, part: !!part,
        bad: !!node.has_errors || !LiteGraph.registered_node_types[node.type], box,
        least: node.computeSize(), hidden: page ? page.scrollHeight - page.clientHeight : 0};
})"""
GROUPS = "() => app.graph._groups.map(group => [...group._bounding])"
QUEUED = "async () => (await app.graphToPrompt()).output"


def messages_of(page: Page) -> list[str]:
    """Fills with the console's errors and warnings that concern us."""
    heard: list[str] = []
    page.on("console", lambda said: heard.append(said.text[:300]) if said.type == "error" else None)
    page.on("pageerror", lambda error: heard.append(f"uncaught: {error}"[:300]))
    return heard


def open_page(browser, server: str, language: str, new_design: bool = False) -> Page:
    page = browser.new_page(viewport={"width": 1920, "height": 1080}, device_scale_factor=1)
    page.set_default_timeout(300_000)
    page.goto(server)
    page.wait_for_function("window.app?.graph && Object.keys(LiteGraph.registered_node_types).length > 100")
    page.wait_for_timeout(2500)
    for name, value in (PLAIN | {"Comfy.VueNodes.Enabled": new_design}).items():
        page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])
    now = page.evaluate("() => app.extensionManager.setting.get('Comfy.Locale')")
    if now != language:
        page.evaluate("l => app.extensionManager.setting.set('Comfy.Locale', l)", language)
        page.wait_for_timeout(500)
        page.reload()
        page.wait_for_function("window.app?.graph && Object.keys(LiteGraph.registered_node_types).length > 100")
        page.wait_for_timeout(2500)
    return page


def show(page: Page, workflow: dict) -> None:
    page.evaluate("async w => { await app.loadGraphData(w); }", workflow)
    page.wait_for_timeout(800)
    for _ in range(3):  # dialogs on missing models
        page.keyboard.press("Escape")
        page.wait_for_timeout(200)


def fit(page: Page, margin: int = 30) -> None:
    """The whole graph into the window."""
    page.evaluate(
        """margin => {
        const boxes = app.graph._nodes.map(n => n.getBounding()).concat(app.graph._groups.map(g => g._bounding));
        const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
        const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]));
        const ds = app.canvas.ds, seen = app.canvas.canvas.getBoundingClientRect();
        const shown = {left: 65, top: 85, right: window.innerWidth, bottom: window.innerHeight};
        const w = shown.right - shown.left - 2 * margin, h = shown.bottom - shown.top - 2 * margin;
        ds.scale = Math.min(w / (right - left), h / (bottom - top), 1.2);
        ds.offset[0] = (shown.left - seen.left + margin) / ds.scale - left;
        ds.offset[1] = (shown.top - seen.top + margin) / ds.scale - top;
        app.canvas.setDirty(true, true);
    }""",
        margin,
    )
    page.wait_for_timeout(1500)


def overlap(one: list[float], other: list[float]) -> bool:
    (x, y, width, height), (u, v, wide, high) = one, other
    return x < u + wide and u < x + width and y < v + high and v < y + height


def faults(page: Page) -> list[str]:
    """What is wrong with the graph that is shown."""
    nodes, groups, found = page.evaluate(BOXES), page.evaluate(GROUPS), []
    for node in nodes:
        x, y, width, height = node["box"]
        name = f"{node['title']} ({node['type']})"
        if node["bad"]:
            found.append(f"{name} is missing or marked as bad")
        if node["hidden"] > 2:
            found.append(f"{name} hides {node['hidden']} pixels of its text")
        if node["least"][1] > height - 29 and "Note" not in node["type"] and not node["part"]:
            found.append(f"{name} is {height - 30:.0f} high and needs {node['least'][1]:.0f}")
        if not any(u < x and v < y and x + width < u + wide and y + height < v + high for u, v, wide, high in groups):
            found.append(f"{name} sticks out of its group")
        found += [
            f"{name} overlaps {other['title']} ({other['type']})"
            for other in nodes
            if other["id"] > node["id"] and overlap(node["box"], other["box"])
        ]
    return found + ["two groups overlap" for one, other in combinations(groups, 2) if overlap(one, other)]


def not_queued(page: Page, workflow: dict, server: Server) -> list[str]:
    """Values and links of a template that the frontend would not queue."""
    queued, found = page.evaluate(QUEUED), []
    for number, node in to_api(workflow, server.classes).items():
        got = queued.get(number, {"inputs": {}})["inputs"]
        found += [
            f"{node['class_type']} would get {name} {got.get(name)!r} in place of {value!r}"
            for name, value in node["inputs"].items()
            if got.get(name) != value
        ]
    return found


def run_graph(page: Page, limit: int, values: dict) -> list[str]:
    """Queues what is shown, with these widget values, and waits for the end; errors that the server told."""
    page.evaluate(
        """values => { window.failed = []; window.finished = false;
        app.api.addEventListener('execution_error',
            e => window.failed.push(e.detail.node_type + ': ' + e.detail.exception_message));
        for (const kind of ['execution_error', 'execution_success', 'execution_interrupted'])
            app.api.addEventListener(kind, () => { window.finished = true; });
        for (const node of app.graph._nodes) for (const w of node.widgets ?? [])
            if (w.name in values) w.value = values[w.name];
    }""",
        values,
    )
    page.evaluate("async () => { await app.queuePrompt(0, 1); }")
    page.wait_for_function("window.finished || Object.keys(app.lastNodeErrors ?? {}).length", timeout=1000 * limit)
    page.wait_for_timeout(4000)
    return page.evaluate("() => [...window.failed, ...Object.values(app.lastNodeErrors ?? {}).map(JSON.stringify)]")


def look_at_templates(
    page: Page, server: Server, heard: list[str], out: Path, only: str, values: dict | None, limit: int
) -> int:
    """values: widget values to run each template with; None for not running it."""
    wrong = 0
    for path in sorted((PACK / "workflows").glob(f"{only}*.json")):
        heard.clear()
        workflow = json.loads(path.read_text(encoding="utf-8"))
        show(page, workflow)
        told = not_queued(page, workflow, server)
        told += [] if values is None else run_graph(page, limit, values)
        fit(page)
        told += faults(page) + [text for text in heard if not any(word in text for word in QUIET)]
        name = path.stem if values is None else f"{path.stem}-ran"
        page.screenshot(path=out / f"{name}.png")
        Image.open(out / f"{name}.png").convert("RGB").save(out / f"{name}.jpg", quality=80, optimize=True)
        print(f"{path.stem}: {'fine' if not told else ''}", *told, sep="\n  ", flush=True)
        wrong += len(told)
    return wrong


def picture_nodes(page: Page, out: Path) -> int:
    """One picture of every node of the pack, cropped to it."""
    (out / "nodes").mkdir(parents=True, exist_ok=True)
    names = page.evaluate("() => Object.keys(LiteGraph.registered_node_types).filter(n => n.startsWith('DreamVideo'))")
    for number, name in enumerate(names, start=1):
        page.evaluate(  # an id of its own: the page remembers what widgets of an id have shown
            """([name, id]) => { app.graph.clear(); const node = LiteGraph.createNode(name); node.id = id;
            app.graph.add(node); node.pos = [0, 0];
            const s = node.computeSize(); node.setSize([Math.max(s[0], 330), s[1]]);
            const ds = app.canvas.ds; ds.scale = 1.25; ds.offset[0] = 200; ds.offset[1] = 150;
            app.canvas.setDirty(true, true); }""",
            [name, number],
        )
        page.wait_for_timeout(700)
        x, y, width, height = page.evaluate(
            """() => { const n = app.graph._nodes[0], ds = app.canvas.ds, r = app.canvas.canvas.getBoundingClientRect();
            return [r.left + (n.pos[0] + ds.offset[0]) * ds.scale, r.top + (n.pos[1] - 30 + ds.offset[1]) * ds.scale,
            n.size[0] * ds.scale, (n.size[1] + 30) * ds.scale]; }"""
        )
        shot = page.screenshot(clip={"x": x - 8, "y": y - 2, "width": width + 16, "height": height + 10})
        picture = Image.open(io.BytesIO(shot)).convert("RGB")
        picture.save(out / "nodes" / f"{name}.png", optimize=True)
        print(name, *picture.size, (out / "nodes" / f"{name}.png").stat().st_size)
    return 0


def picture_help(page: Page, out: Path, name: str = "DreamVideoTrainSubject") -> int:
    page.evaluate(
        """name => { app.graph.clear(); const node = LiteGraph.createNode(name); app.graph.add(node);
        node.pos = [0, 0]; const ds = app.canvas.ds; ds.scale = 1; ds.offset[0] = 900; ds.offset[1] = 200;
        app.canvas.selectNode(node); app.canvas.setDirty(true, true); }""",
        name,
    )
    page.wait_for_timeout(1500)
    page.locator('[data-testid="info-button"]').click()
    page.wait_for_timeout(2500)
    page.screenshot(path=out / "help.png")
    return 0


def picture_browse(page: Page, out: Path) -> int:
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.wait_for_timeout(3000)
    for label in page.locator("text=/dreamvideo/i").all()[:1]:
        label.click()
        page.wait_for_timeout(2500)
    page.screenshot(path=out / "browse.png")
    return 0


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("server")
    asked.add_argument("out", type=Path)
    asked.add_argument("what", nargs="*", default=["templates"])
    asked.add_argument("--only", default="", help="beginning of a template's name")
    asked.add_argument("--zh", action="store_true", help="in Chinese")
    asked.add_argument("--new-design", action="store_true", help="with Nodes 2.0")
    asked.add_argument("--full", action="store_true", help="run with the template's own steps; quickstart only")
    asked.add_argument("--limit", type=int, default=900, help="seconds that a run may take")
    given = asked.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    wrong, server = 0, Server(given.server)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = open_page(browser, given.server, "zh" if given.zh else "en", given.new_design)
        heard = messages_of(page)
        for what in given.what:
            if what in ("templates", "run"):
                values = None if what == "templates" else {} if given.full else TOY | FEW
                wrong += look_at_templates(page, server, heard, given.out, given.only, values, given.limit)
            else:
                wrong += {"nodes": picture_nodes, "help": picture_help, "browse": picture_browse}[what](page, given.out)
        browser.close()
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
