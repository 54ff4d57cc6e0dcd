import pytest

from tests.util.tables.tiny_table import write_table


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path)
