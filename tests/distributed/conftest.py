"""What all of these tests share: one server of forked processes and one small base, made before the first test."""

import launching
import pytest
from forked_rank import forked_ranks
from small_base import save_small_base


@pytest.fixture(scope="session", autouse=True)
def ranks(tmp_path_factory):
    """Runs that are trained to their end fork their ranks; what is killed, stopped or refused is started in full."""
    with forked_ranks(tmp_path_factory.mktemp("ranks")) as variables:
        launching.FORKED.update(variables)
        yield
        launching.FORKED.clear()


@pytest.fixture(scope="session", autouse=True)
def base(tmp_path_factory):
    """Every recipe names the same small base, by its path."""
    launching.RECIPE["model"] = str(save_small_base(tmp_path_factory.mktemp("base")))
