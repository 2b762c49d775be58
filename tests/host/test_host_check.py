"""Check DreamVideo on what the host has loaded."""

from functools import partial

import pytest
from graphs import base
from harness import Cancelled, Graph


def checked(host, monkeypatch) -> list:
    module = host.module("nodes.check")
    monkeypatch.setattr(module, "check", partial(module.check, seconds=0.1))
    graph = Graph()
    loader = base(graph)
    parts = dict(zip(("model", "clip", "vae", "clip_vision"), ([loader, index] for index in range(4)), strict=True))
    return [graph, [graph.add("DreamVideoCheck", **parts), 0]]


def test_the_report_tells_what_ran_where(host, monkeypatch, request):
    report = host.run_with_probe(*checked(host, monkeypatch))[0]
    paged = "paged" in request.node.callspec.id
    assert f"dynamic VRAM          {'on' if paged else 'off'} for this model" in report
    for title in ("Training: textual inversion", "Training: identity", "Training: motion", "Sampling"):
        assert title in report
    assert "UNet ran" in report and "all on cpu in float32" in report
    assert "ATTENTION" not in report and "failed" not in report, report


@pytest.mark.parametrize("host", ["static"], indirect=True)
def test_cancel_ends_it(host, monkeypatch):
    host.forget_models()  # and what the host remembers of the graph above
    host.cancel_after = 3
    with pytest.raises(Cancelled):
        host.run_with_probe(*checked(host, monkeypatch))
