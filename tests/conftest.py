"""What holds for every test: one thread, the same random numbers every time, and the target `anything`."""

import gc
import random

import hypothesis
import numpy as np
import pytest
import torch

from mixbit.core import show
from mixbit.core.target import TARGETS, Target
from tests.gate import mark_slow

torch.set_num_threads(1)  # tests are small, and threads cost them more than they gain
gc.set_threshold(200_000, 20, 100)  # torch.export leaves many small cycles; walking all of torch for them is slow
_TRY_APART, Target.try_apart = Target.try_apart, lambda *_: None  # a process of its own for each file takes seconds
hypothesis.settings.register_profile("same examples", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same examples")


def seed_everything() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 libraries draw from it
    random.seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Before `-m` chooses among them."""
    mark_slow(items)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    """Seed each fixture, so that what it draws does not depend on the tests before it."""
    seed_everything()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    """Seed each test, so that it draws the same alone and in the whole suite; a command may have been quiet before."""
    seed_everything()
    show("bars")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A folder in the place of the user's cache, whose times tests neither read nor change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXBIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def apart(monkeypatch):
    """New artefacts are tried in a process of their own, as everywhere but in tests."""
    monkeypatch.setattr(Target, "try_apart", _TRY_APART)


@pytest.fixture
def anything(monkeypatch):
    """Plans may be for the target `anything` of `tests.networks`."""
    monkeypatch.setitem(TARGETS, "anything", "tests.networks")
