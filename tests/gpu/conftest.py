"""The order of what needs a GPU."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Our own kernels come last: after a fault of one all that follows in the process fails."""
    items.sort(key=lambda item: "tests/gpu/" in item.nodeid and "triton" in item.nodeid)
