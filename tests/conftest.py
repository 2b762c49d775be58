"""What every test stands on: a folder for caches of its own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_caches(tmp_path_factory):
    """What is encoded is kept for the next run of the user, not of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield
