"""Packs tiktoken's public rank files into gateway/data, so that tokens are counted without a network.

The source is any wheel that carries the files unchanged (litellm and llama-index-core do):

    pip download --no-deps litellm -d /tmp/wheels
    python scripts/pack_tokens.py /tmp/wheels/litellm-*.whl

Ranks are contiguous and no token is longer than 255 bytes, so a file is its tokens in rank order, each behind one byte
of length, compressed with xz.  What is read must have the sha256 that tiktoken itself expects (openai_public.py).
"""

from __future__ import annotations

import base64
import hashlib
import lzma
import sys
import zipfile
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "gateway" / "data"
URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
SHA256 = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}


def pack(ranks: bytes) -> bytes:
    """A rank file (one line per token: base64, space, rank) as length-prefixed tokens, xz'd.  Raises ValueError."""
    out = bytearray()
    for expected, line in enumerate(ranks.splitlines()):
        token, rank = line.split()
        if int(rank) != expected:
            raise ValueError(f"rank {expected} is missing: ranks must be contiguous")
        raw = base64.b64decode(token)
        out += len(raw).to_bytes(1, "big") + raw
    return lzma.compress(bytes(out), preset=9 | lzma.PRESET_EXTREME)


def find(wheel: Path, name: str) -> bytes:
    """The rank file `name` in the wheel, under tiktoken's cache name: the sha1 of its address.  Raises ValueError."""
    cached_as = hashlib.sha1(URL.format(name).encode(), usedforsecurity=False).hexdigest()
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.namelist():
            if entry.endswith("/" + cached_as):
                ranks = archive.read(entry)
                if hashlib.sha256(ranks).hexdigest() != SHA256[name]:
                    raise ValueError(f"{entry} in {wheel.name} is not tiktoken's {name}: its sha256 differs")
                return ranks
    raise ValueError(f"{wheel.name} holds no file {cached_as} ({name}): take a litellm or llama-index-core wheel")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python scripts/pack_tokens.py WHEEL\n")
        return 2
    for name in SHA256:
        packed = pack(find(Path(arguments[0]), name))
        (DATA / f"{name}.bin.xz").write_bytes(packed)
        sys.stdout.write(f"{name}.bin.xz  {len(packed)} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
