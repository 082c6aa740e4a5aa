"""What many tests share: one thread, real image bytes, a tiny teacher, and the way to
``../shared/data``.
"""

import hashlib
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: same sums everywhere, here and in child processes
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # so a shell starts what runs in its background, tox & for one
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("dimefm", deadline=None, derandomize=True, database=None)
settings.load_profile("dimefm")

ROOT = Path(__file__).parents[1]
TEACHER = "ResNet-mini-64/random:0"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data beside the checkout, or skip."""
    folder = (ROOT / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def golden_tsv() -> Path:
    """Return DIME-FM's own example: images, captions and features as TSV, and what they must read
    back to.
    """
    return ROOT / "tests/golden/tsv_example"


@pytest.fixture(scope="session")
def tiny_teacher():
    """Return an untrained encoder of a real architecture; CPU, 128 dimensions, 64 pixels, 32
    tokens.
    """
    from dimefm.models.loading import load_encoder

    return load_encoder(TEACHER, "cpu")


@pytest.fixture
def one_lane():
    """Encode one batch after another: what an encoder counts comes in order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """Return ``picture(seed, size=(w, h), format="PNG")``: the bytes of an image file of coarse
    noise.
    """

    def make(seed: int, size: tuple[int, int] = (20, 16), format: str = "PNG", **options) -> bytes:
        noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize(size).save(file, format, **options)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """Return ``digests(folder)``: relative path -> SHA-256 of every file below a folder."""

    def of(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }

    return of


@pytest.fixture(scope="session")
def quickstarted(tmp_path_factory) -> Path:
    """Return the folder of ``dimefm quickstart`` at a twentieth of its rows and steps, run once for
    the whole suite.
    """
    from click.testing import CliRunner

    from dimefm.cli import main

    out = tmp_path_factory.mktemp("main-job") / "quickstart"
    result = CliRunner().invoke(main, ["quickstart", "--scale", "0.05", "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out
