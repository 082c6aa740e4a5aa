"""Names that are not ASCII are the same keys and files in every locale."""

import os
import subprocess
import sys
import tarfile

import pytest

LOCALES = {
    "utf-8": {"LC_ALL": "C.UTF-8"},
    "c": {"LC_ALL": "C"},
    "ascii": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}

READ = """
import sys
from dimefm.cache.plan import shard_files
from dimefm.data import Columns, open_rows
from dimefm.errors import BadRow
from dimefm.storage.stores import open_store

root = sys.argv[1]
for source, kind in [
    ("photos-\\u00e9", "image"), ("t.csv", "image"), ("x.tar", "image"), ("x.list", "text")
]:
    source = f"{root}/{source}"
    try:
        source.encode(sys.getfilesystemencoding())
    except UnicodeEncodeError:
        source = source.encode().decode("ascii", "surrogateescape")
    rows = open_rows([source], kind)
    for shard in rows.shards:
        file = shard_files([shard.name], ".h5")[shard.name]
        open_store(f"{root}/out").write(file, "x")
        print(ascii(shard.name), ascii(shard.keys()))
    for index in range(len(rows)):
        try:
            row = rows[index]
            print(row.image is not None, ascii(row.texts))
        except BadRow as error:
            print(ascii(str(error)))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory, picture):
    root = tmp_path_factory.mktemp("locales")
    folder = root / "photos-é"
    (folder / "日本").mkdir(parents=True)
    for name in ("a.jpg", "ü.jpg", "日本/b.jpg"):
        (folder / name).write_bytes(picture(1))
    with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:
        file.write(picture(2))
    (root / "t.csv").write_text("filepath,title\nphotos-é/ü.jpg,ein Bär\n", encoding="utf-8")
    with tarfile.open(root / "x.tar", "w", encoding="utf-8", format=tarfile.GNU_FORMAT) as tar:
        tar.add(folder / "ü.jpg", "ü.jpg")
    with tarfile.open(root / "y.tar", "w", encoding="utf-8", format=tarfile.PAX_FORMAT) as tar:
        tar.add(folder / "ü.jpg", "日本.jpg")
    (root / "x.tar").write_bytes((root / "x.tar").read_bytes() + (root / "y.tar").read_bytes())
    (root / "tex-é.txt").write_text("ein Bär\n", encoding="utf-8")
    (root / "x.list").write_text("tex-é.txt\n", encoding="utf-8")
    return root


@pytest.mark.parametrize("name", LOCALES)
def test_rows_keys_and_files_do_not_depend_on_the_locale(root, name):
    unset = ("LANG", "LC_CTYPE", "PYTHONIOENCODING", *LOCALES["ascii"])
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    done = subprocess.run(
        [sys.executable, "-c", READ, root],
        capture_output=True,
        text=True,
        env={**environment, **LOCALES[name]},
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        r"'photos-\xe9' ['a.jpg', 'caf\\udce9.jpg', '\xfc.jpg', '\u65e5\u672c/b.jpg']",
        *["True ()"] * 4,
        r"'t.csv' ['photos-\xe9/\xfc.jpg']",
        "True ()",
        r"'x.tar' ['\xfc', '\u65e5\u672c']",
        *["True ()"] * 2,
        r"'tex-\xe9.txt' ['0']",
        r"False ('ein B\xe4r',)",
    ]
    assert sorted(path.name for path in (root / "out").iterdir())[0] == "photos-é.feat.h5"
