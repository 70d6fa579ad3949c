"""For all tests: how long an example takes says something about the machine, not about the code."""

from collections.abc import Iterable

import pytest
from hypothesis import settings

settings.register_profile("rondo", deadline=None)
settings.load_profile("rondo")

# Whole runs that tests look at afterwards: whoever needs one of them goes to the process that has made it.
_RUNS = {"finished", "stopped"}


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Side by side (``-n 2 --dist loadgroup``) a file stays together, and so do the files that need the same runs."""
    needing = {item.path for item in items if _RUNS & set(getattr(item, "fixturenames", ()))}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("runs" if item.path in needing else item.path.stem))
