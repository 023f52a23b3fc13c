"""What all of these tests share: one server of forked processes and one small base, made before the first test."""

import launching
import pytest
from forked_python import fork_server
from small_base import save_small_base


@pytest.fixture(scope="session", autouse=True)
def server(tmp_path_factory):
    """Runs that end by themselves are forked; what is killed or stopped, and two machines, are started in full."""
    with fork_server(tmp_path_factory.mktemp("server")) as variables:
        launching.FORKS.update(variables)
        yield
        launching.FORKS.clear()


@pytest.fixture(scope="session", autouse=True)
def base(tmp_path_factory):
    """Every recipe names the same small base, by its path."""
    launching.RECIPE["model"] = str(save_small_base(tmp_path_factory.mktemp("base")))
