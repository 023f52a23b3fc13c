"""One server of forked ranks for all of these tests; it is started by the first run that wants it."""

import launching
import pytest
from forked_rank import forked_ranks


@pytest.fixture(scope="session", autouse=True)
def ranks(tmp_path_factory):
    """Runs that are trained to their end fork their ranks; what is killed, stopped or refused is started in full."""
    with forked_ranks(tmp_path_factory.mktemp("ranks")) as variables:
        launching.FORKED.update(variables)
        yield
        launching.FORKED.clear()
