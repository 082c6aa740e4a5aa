"""What an image may cost: metadata of any size cost nothing, and what would take minutes or
gigabytes is refused before it is decoded. Too little memory is never the image's fault.
"""

import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dimefm.data.images.decode import decode, photo_of
from dimefm.data.images.limits import PIXELS, PixelBudget, stated_pixels
from dimefm.errors import BadRow

ROOT = Path(__file__).parents[3]
GIGABYTE = 1 << 30


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def behind_header(png, *chunks):
    return png[:33] + b"".join(chunks) + png[33:]


BULK = zlib.compress(b"node " * 600_000, 9)
TEXTS = {
    "color profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3_000_000), 9)),
    "profile that is none": chunk(b"iCCP", b"p\0\0" + b"no zlib"),
    "packed text": chunk(b"zTXt", b"workflow\0\0" + BULK),
    "international text": chunk(b"iTXt", b"workflow\0\1\0\0\0" + BULK),
    "plain text": chunk(b"tEXt", b"workflow\0" + b"node " * 600_000),
    "text that is not UTF-8": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0Ren\xe9 \xff"),
    "packed exif": chunk(b"zTXt", b"Raw profile type exif\0\0" + BULK),
    "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BULK),
    "damaged text": chunk(b"zTXt", b"workflow\0\0" + BULK[:100]),
    "many texts": b"".join(chunk(b"zTXt", b"k\0\0" + BULK) for _ in range(100)),
    "many exif": b"".join(chunk(b"tEXt", b"XML:com.adobe.xmp\0x") for _ in range(30_000)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_png_with_any_metadata_is_its_picture(picture, name):
    png = picture(1, (24, 20))
    expected = np.asarray(decode(png))
    for data in (behind_header(png, TEXTS[name]), png[:-12] + TEXTS[name] + png[-12:]):
        assert np.array_equal(np.asarray(decode(data)), expected)


def test_the_orientation_in_a_pngs_texts_is_kept(picture):
    png = picture(1, (24, 20))
    xmp = b'<x tiff:Orientation="6"/>'
    turned = behind_header(png, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    with Image.open(io.BytesIO(turned)) as image:
        expected = (20, 24) if image.getexif().get(0x0112) == 6 else (24, 20)
    assert decode(turned).size == expected == (20, 24)


def test_a_gif_with_any_comments_is_its_first_picture(picture):
    gif = picture(1, (24, 20), "GIF")
    expected = np.asarray(decode(gif))
    head = 13 + (3 << (gif[10] & 7) + 1)
    long = b"!\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0"
    many = b"!\xfe\1c\0" * 20_000
    for comments in (long, many, b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"):
        data = gif[:head] + comments + gif[head:]
        assert np.array_equal(np.asarray(decode(data)), expected)


def test_a_gifs_transparency_stays(picture):
    frames = [Image.new("P", (8, 8), color) for color in (1, 2)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=1)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGBA").convert("RGB"))
    assert np.array_equal(np.asarray(decode(data)), expected)


def exif_segment(body):
    return b"\xff\xe1" + struct.pack(">H", len(body) + 8) + b"Exif\0\0" + body


def exif_of_many_tags(tags, size):
    """Return EXIF whose tags all name the same ``size`` bytes."""
    offset = 14 + 12 * tags
    entries = [struct.pack("<HHII", number, 7, size, offset) for number in range(tags)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", tags) + b"".join(entries) + bytes(4 + size)


ODD_EXIF = {
    "empty": b"",
    "garbage": b"garbagegarbage",
    "cut": b"II*\0\x08\0\0\0\x05\0\x12\x01\x03\0",
    "loop": b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\0\0\0\0",
    "orientation 9": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",
    "orientation as text": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\x006\0\0\0\0\0\0\0",
    "many tags": exif_of_many_tags(2000, 40_000),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # as at the command line
@pytest.mark.parametrize("name", ODD_EXIF)
def test_odd_exif_does_not_matter(picture, name):
    jpeg = picture(1, (24, 20), "JPEG")
    data = jpeg[:2] + exif_segment(ODD_EXIF[name]) + jpeg[2:]
    assert np.array_equal(photo_of(data).pixels, photo_of(jpeg).pixels)
    png = picture(1, (24, 20))
    data = behind_header(png, chunk(b"eXIf", ODD_EXIF[name]))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(decode(png)))


def test_xmp_that_is_not_utf8_does_not_matter(picture):
    jpeg = picture(1, (24, 20), "JPEG")
    body = b"http://ns.adobe.com/xap/1.0/\0<x dc:creator='Ren\xe9 \xa8'/>"
    data = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]
    assert np.array_equal(photo_of(data).pixels, photo_of(jpeg).pixels)


def of_many_scans():
    data = encoded(Image.new("L", (64, 64)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * 101 + b"\xff\xd9"


def tiled_tiff(width, length):
    entries = [(256, 100), (257, 100), (258, 8), (259, 8), (262, 1), (277, 1), (322, width)]
    entries += [(323, length), (324, 8), (325, 8)]
    fields = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(fields) + bytes(2000)


def rle_bmp(width, height):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    body = (b"\xff\0" * (width // 255) + bytes((width % 255, 0, 0, 0))) * height + b"\0\1"
    start = 54 + 1024
    file = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start)
    return file + head + bytes(1024) + body


JPEG = encoded(Image.new("RGB", (32, 32)), "JPEG")
COSTLY = {
    "JPEG of many scans": (of_many_scans, "more than 100 scans"),
    "JPEG of many segments": (
        lambda: JPEG[:2] + b"\xff\xfe\0\2" * 10_001 + JPEG[2:],
        "more than 10,000 segments",
    ),
    "JPEG of junk": (lambda: JPEG[:20] + bytes((1 << 20) + 1) + JPEG[20:], "bytes between"),
    "PNG of many chunks": (
        lambda: behind_header(encoded(Image.new("L", (9, 9))), chunk(b"abCd", b"") * 1_000_001),
        "more than 1,000,000 chunks",
    ),
    "GIF of many blocks": (
        lambda: b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1c\0" * 600_000,
        "more than 1,000,000 blocks",
    ),
    "TIFF of large tiles": (lambda: tiled_tiff(40_000, 40_000), "tiles of 40000 x 40000"),
    "BMP that is decoded in Python": (lambda: rle_bmp(3000, 3000), "limits of this kind of BMP"),
    "PPM as text": (lambda: b"P3\n3000 3000\n255\n1 1 1", "limits of this kind of PPM"),
    "PPM of another maximum": (lambda: b"P6\n3000 3000\n300\n1", "limits of this kind of PPM"),
    "PPM as a long text": (
        lambda: b"P2\n3000 2000\n255\n" + b"1    " * 4_000_000,
        "limits of this kind of PPM",
    ),
    "JPEG 2000": (
        lambda: encoded(Image.new("1", (9000, 5000)).convert("L"), "JPEG2000"),
        "the limit is 44,739,242",
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_cost_too_much_is_refused_before_it_is_decoded(name):
    make, reason = COSTLY[name]
    with pytest.raises(BadRow, match=reason):
        decode(make())


def test_small_images_of_costly_kinds_are_read():
    assert decode(rle_bmp(300, 200)).size == (300, 200)
    assert decode(b"P3\n2 1\n255\n1 2 3 4 5 6\n").getpixel((1, 0)) == (4, 5, 6)
    assert decode(b"P6\n1 1\n511\n\1\xff\0\0\0\0").getpixel((0, 0)) == (255, 0, 0)


def test_threads_share_a_budget_of_pixels():
    budget = PixelBudget(100)
    most = []
    now = [0]
    lock = threading.Lock()

    def work(pixels):
        for _ in range(30):
            with budget.take(pixels):
                with lock:
                    now[0] += pixels
                    most.append(now[0])
                with lock:
                    now[0] -= pixels

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in (100, 60, 60, 30, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(most) <= 100 and len(most) == 150 and now == [0]


def test_the_size_that_a_webp_states():
    for options in ({}, {"lossless": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}):
        data = encoded(Image.new("RGB", (321, 123)), "WEBP", **options)
        assert stated_pixels(data) == 321 * 123
    assert stated_pixels(b"RIFF....WEBP") == stated_pixels(JPEG) == 0


LIMITED = """
import os, pickle, resource, sys
from dimefm.data.images.decode import photo_of
from dimefm.errors import BadRow

files = pickle.load(open(sys.argv[1], "rb"))
for megabytes in map(int, sys.argv[2:]):
    for name, data in files.items():
        child = os.fork()
        if not child:
            pages = int(open("/proc/self/statm").read().split()[0])
            limit = pages * resource.getpagesize() + (megabytes << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            code = 0
            try:
                photo_of(data)
            except MemoryError:
                code = 1
            except BadRow:
                code = 2
            except BaseException:
                code = 3
            os._exit(code)
        print(megabytes, name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


FEW = (600, (4, 30, 300))
MANY = (3000, (0, 3, 8, 20, 30, 45, 60, 80, 120, 300))


@pytest.mark.parametrize(("width", "limits"), [FEW, pytest.param(*MANY, marks=pytest.mark.slow)])
def test_too_little_memory_is_never_the_images_fault(tmp_path, width, limits):
    """Good images of every format, in so many MB: each is read, or memory is to blame."""
    size = (width, width * 3 // 4)
    image = Image.effect_mandelbrot(size, (-2, -1, 1, 1), 40).convert("RGB")
    files = {
        "jpeg": encoded(image, "JPEG"),
        "progressive": encoded(image, "JPEG", progressive=True),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "png": encoded(image.convert("RGBA"), compress_level=1),
        "webp": encoded(image, "WEBP", method=0),
        "lossless": encoded(image, "WEBP", lossless=True, method=0),
        "tiff": encoded(image, "TIFF", compression="tiff_lzw"),
        "gif": encoded(image.convert("L"), "GIF"),
        "jp2": encoded(image, "JPEG2000"),
        "avif": encoded(image, "AVIF", speed=10),
        "float": encoded(image.convert("F"), "TIFF", compression="tiff_lzw"),
    }
    (tmp_path / "files").write_bytes(pickle.dumps(files))
    script = [sys.executable, "-W", "ignore", "-c", LIMITED, str(tmp_path / "files")]
    script += map(str, limits)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, capture_output=True, text=True, check=True, env=environment)
    codes = {}
    for line in done.stdout.splitlines():
        megabytes, name, code = line.split()
        codes[int(megabytes), name] = int(code)
    assert len(codes) == len(limits) * len(files)
    assert {place: code for place, code in codes.items() if code not in (0, 1)} == {}
    assert set(codes.values()) == {0, 1}
    assert all(code == 0 for (megabytes, _), code in codes.items() if megabytes == 300)


def of_all_pixels():
    """Yield the largest images that are read, of a single color, by name."""
    side = int(PIXELS**0.5) - 1
    for mode in ("RGBA", "I;16"):
        yield f"png {mode}", encoded(Image.new(mode, (side, side)), compress_level=1)
    for mode in ("RGB", "CMYK"):
        yield f"jpeg {mode}", encoded(Image.new(mode, (side, side)), "JPEG")
    yield "avif", encoded(Image.new("RGB", (side, side)), "AVIF", speed=10)
    yield "tiff F", encoded(Image.new("F", (side, side)), "TIFF", compression="tiff_lzw")
    side = int((PIXELS // 2) ** 0.5) - 1
    yield "jp2", encoded(Image.new("RGB", (side, side)), "JPEG2000")


READ_ONE = """
import sys
from tests.memory import peak_kib
from dimefm.data.images.decode import photo_of

data = open(sys.argv[1], "rb").read()
before = peak_kib()
photo_of(data)
print((peak_kib() - before) << 10)
"""


@pytest.mark.slow
def test_the_largest_images_take_what_the_page_says(tmp_path):
    path = tmp_path / "image"
    for name, data in of_all_pixels():
        path.write_bytes(data)
        script = [sys.executable, "-W", "ignore", "-c", READ_ONE, str(path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            script, capture_output=True, text=True, check=True, env=environment, timeout=60
        )
        assert int(done.stdout) < 1.2 * GIGABYTE, name
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0
