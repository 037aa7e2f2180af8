"""Tests run side by side, one process a core: one thread each, or they would slow each other down many times over."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, here and in the processes that tests start
    os.environ["OMP_NUM_THREADS"] = "1"

pytest.register_assert_rewrite("helpers_runs")
