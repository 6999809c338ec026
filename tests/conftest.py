"""One thread per test process: CPU results depend on the number, and small tensors gain nothing from more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def every_level_is_logged() -> Iterator[None]:
    """A run sets what is logged in its process, by its rank; the next test must not inherit it."""
    yield
    logging.getLogger("trans4pass").setLevel(logging.NOTSET)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
