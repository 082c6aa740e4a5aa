"""Every cache format and stored dtype, raw shards of every kind, and room in int8 codes fitted on a
handful of rows.
"""

import pytest

from dimefm import plugins
from dimefm.cache.int8 import QuantizerFitter
from tests.cache.growing import SOURCES, Raw


@pytest.fixture(params=plugins.names("caches"))
def format_(request):
    return request.param


@pytest.fixture(params=["float16", "float32", "int8"])
def dtype(request):
    return request.param


@pytest.fixture(params=SOURCES)
def raw(request, tmp_path, picture):
    return Raw(tmp_path / "raw", request.param, picture)


@pytest.fixture
def texts(tmp_path, picture):
    return Raw(tmp_path / "raw", "text", picture)


@pytest.fixture
def wide(monkeypatch):
    """Make int8 codes wide enough for rows that were not there when they were fitted on a
    handful.
    """
    fitted = QuantizerFitter.code
    monkeypatch.setattr(QuantizerFitter, "code", lambda self, margin=6.0: fitted(self, margin))
