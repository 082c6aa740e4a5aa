"""The formats that images may have, and no others.

PIL knows more than forty. For PostScript it starts Ghostscript, for metafiles a renderer; others
open a second image inside the first one, in any format. Images come from crawls, so only formats of
pixels are read, each by a plugin that starts no program. The plugins are imported here, once: an
import that fails later, for lack of memory, would make good images unknown.
"""

from __future__ import annotations

from PIL import (  # noqa: F401
    BmpImagePlugin,
    DdsImagePlugin,
    GifImagePlugin,
    IcoImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    QoiImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

try:
    from PIL import AvifImagePlugin  # noqa: F401
except ImportError:  # before Pillow 11.3
    pass

WANTED = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "PPM",
    "JPEG2000",
    "AVIF",
    "ICO",
    "DDS",
    "QOI",
)
FORMATS = tuple(name for name in WANTED if name in Image.OPEN)
"""PIL's names of the formats that are read, the most usual ones first."""
