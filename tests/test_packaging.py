"""What is installed and shipped: locked versions, a wheel of our files alone, an image that starts without root."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements.lock", "requirements-image.lock", "requirements-test.lock", "requirements-build.lock")

# Every distribution the gateway asks for.  The list is short on purpose: each one more is code that others can change.
RUNTIME = {
    "apsw", "cachetools", "click", "genai-prices", "httptools", "httpx2", "hyperscan", "msgspec",
    "opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk", "prometheus-client", "pydantic", "pyyaml",
    "starlette", "tiktoken", "uvicorn", "uvloop",
}  # fmt: skip
# Below these, known defects or advisories: the reasons are in docs/decisions.md.
LEAST = {
    "starlette": ">=1.3.1",
    "h11": ">=0.16",
    "httptools": ">=0.8",
    "hyperscan": ">=0.9.1",
    "uvicorn": ">=0.49",
    "httpx2": ">=2.8",
    "httpcore2": ">=2.8",
    "apsw": ">=3.51.3,!=3.52.0.*",  # its version is SQLite's
}
NEVER = {"litellm", "guardrails-ai", "prisma"}


def lock(name: str) -> dict[str, tuple[str, list[str]]]:
    """Distribution -> its version, and its hashes."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = re.match(r"([\w.-]+)==(\S+)", line)
            assert match, f"{name}: not held to one version: {line[:80]}"
            found[str(canonicalize_name(match[1]))] = (match[2], re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line))
    return found


def asked(requirements: list[str]) -> dict[str, SpecifierSet]:
    return {str(canonicalize_name(found.name)): found.specifier for found in map(Requirement, requirements)}


def test_the_gateway_asks_for_these_distributions_and_no_other() -> None:
    assert set(asked(PYPROJECT["project"]["dependencies"])) == RUNTIME


@pytest.mark.parametrize(
    ("name", "requirements"),
    [
        ("requirements.lock", PYPROJECT["project"]["dependencies"]),
        ("requirements-image.lock", PYPROJECT["project"]["dependencies"]),
        ("requirements-image.lock", PYPROJECT["project"]["optional-dependencies"]["postgres"]),
        ("requirements-image.lock", PYPROJECT["project"]["optional-dependencies"]["valkey"]),
        ("requirements-test.lock", PYPROJECT["project"]["optional-dependencies"]["test"]),
        ("requirements-test.lock", PYPROJECT["project"]["optional-dependencies"]["local"]),
        ("requirements-build.lock", PYPROJECT["dependency-groups"]["build"]),
        ("requirements-build.lock", PYPROJECT["build-system"]["requires"]),
    ],
)
def test_what_pyproject_asks_for_is_locked(name: str, requirements: list[str]) -> None:
    locked = lock(name)
    for wanted, versions in asked(requirements).items():
        assert wanted in locked, f"{wanted} is not in {name}: run `make lock`"
        version = locked[wanted][0]
        assert versions.contains(version), f"{name} holds {wanted} {version}, not {versions}: run `make lock`"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_hashes_and_names_no_host_and_no_place_of_this_machine(name: str) -> None:
    locked = lock(name)
    assert [found for found, (_, hashes) in locked.items() if not hashes] == []
    assert not NEVER & set(locked)
    text = (ROOT / name).read_text()
    assert "make lock" in text.splitlines()[1]
    assert re.search(r"://|index-url|find-links|trusted-host|@ |(^|[\s=])/\w", text) is None


def test_locked_versions_are_free_of_what_is_known_against_older_ones() -> None:
    locked = lock("requirements.lock")
    for name, versions in LEAST.items():
        assert SpecifierSet(versions).contains(locked[name][0]), f"{name} {locked[name][0]} is not {versions}"


def test_tests_run_on_the_versions_that_ship() -> None:
    shipped, tested = lock("requirements.lock") | lock("requirements-image.lock"), lock("requirements-test.lock")
    assert {name: tested[name][0] for name in shipped} == {name: version for name, (version, _) in shipped.items()}


def test_a_lock_leaves_nothing_out_that_its_packages_need() -> None:
    locked = lock("requirements.lock")
    environment = {**default_environment(), "extra": ""}
    missing = []
    for name in locked:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # locked for another platform
        for need in map(Requirement, needs):
            wanted = need.marker is None or need.marker.evaluate(environment)
            if wanted and canonicalize_name(need.name) not in locked:
                missing.append(f"{name} needs {need.name}")
    assert missing == []


# ── the wheel ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def run(*command: str | Path, **over: str) -> str:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": "1", **over}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", timeout=100)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def source(to: Path) -> Path:
    """What a clone would hold: git's files, and those that are about to be added."""
    listed = run("git", "-C", str(ROOT), "ls-files", "-coz", "--exclude-standard").split("\0")
    for name in listed:
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A clone, and two wheels that were built from it one after the other."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = source(folder / "clone")
    for turn in ("first", "second"):
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder / turn, clone)
    return clone, *(next((folder / turn).glob("*.whl")) for turn in ("first", "second"))


def test_the_wheel_holds_our_files_and_nothing_else(wheels: tuple[Path, Path, Path]) -> None:
    clone, wheel, _ = wheels
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [*(clone / "gateway").rglob("*"), *(clone / "policies").rglob("*")]
    ours = {str(file.relative_to(clone)) for file in files if file.is_file()}
    assert {name for name in names if ".dist-info/" not in name} == ours
    assert {name.split("/", 1)[1] for name in names - ours} == {
        "METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE", "licenses/gateway/data/NOTICE",
    }  # fmt: skip
    assert not [name for name in names if name.endswith((".pth", ".so", ".pyc")) or "customize" in name]


def test_two_builds_give_the_same_wheel_to_the_byte(wheels: tuple[Path, Path, Path]) -> None:
    assert wheels[1].read_bytes() == wheels[2].read_bytes()


def test_an_installed_wheel_validates_a_configuration_and_counts_and_prices_offline(
    wheels: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheels[1])
    keys = {"OPENAI_API_KEY": "sk-1", "CHECKOUT_KEY": "tk-checkout", "TOLLKEEPER_ADMIN_KEY": "admin-key-of-a-test"}
    assert str(site) in run(sys.executable, "-c", "import gateway; print(gateway.__file__)", PYTHONPATH=str(site))
    command = (sys.executable, "-m", "gateway", "check", "--config", ROOT / "config.example.yaml")
    said = run(*command, PYTHONPATH=str(site), **keys)
    assert "gpt-4o-mini" in said
    assert (site / "gateway" / "data" / "o200k_base.bin.xz").stat().st_size > 800_000


def test_importing_the_gateway_opens_no_socket_and_starts_no_process() -> None:
    watch = (
        "import sys\n"
        "heard = []\n"
        "kinds = ('socket.connect', 'socket.bind', 'socket.getaddrinfo', 'subprocess.Popen', 'os.fork', 'os.exec')\n"
        "sys.addaudithook(lambda event, args: heard.append(event) if event in kinds else None)\n"
        "import gateway.app, gateway.cli, policies.access\n"
        "print(heard)\n"
        "import socket; socket.socket().bind(('127.0.0.1', 0)); print(heard)\n"
    )
    assert run(sys.executable, "-c", watch, PYTHONPATH=str(ROOT)).split("\n")[:2] == ["[]", "['socket.bind']"]


# ── the image ─────────────────────────────────────────────────────────────────────────────────────────────────────────

PLACES = re.compile(r"(?<![\w.:/])/(src|build|app|dist|data)\b")


def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's instructions, stage by stage."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    found: list[list[tuple[str, str]]] = []
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def said(stage: list[tuple[str, str]], word: str) -> str:
    return next(rest for found, rest in stage if found == word)


def test_the_image_runs_one_process_without_root_and_without_a_shell() -> None:
    final = stages()[-1]
    assert said(final, "USER") == "10001:10001"
    assert said(final, "ENTRYPOINT") == '["tollkeeper"]'
    assert said(final, "CMD") == '["serve", "--host", "0.0.0.0"]'
    assert ' CMD ["python", "-c", ' in said(final, "HEALTHCHECK")
    assert not [rest for word, rest in final if word == "RUN"], "only the build stage runs, and so downloads, anything"
    assert all(rest.startswith("--from=build ") for word, rest in final if word == "COPY")


def test_every_package_of_the_image_is_held_to_its_hash() -> None:
    for word, rest in [found for stage in stages() for found in stage]:
        for command in rest.split("&&") if word == "RUN" else []:
            if " install " in command:
                assert "--no-deps" in command
                assert "--require-hashes" in command or "--no-index" in command


def build_image(root: Path) -> None:
    """Does what `docker build` would do in the first stage, below `root` in place of /."""
    folder = root
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for word, rest in stages()[0]:
        if word == "WORKDIR":
            folder = root / rest.lstrip("/")
            folder.mkdir(parents=True)
        elif word == "COPY":
            *names, _ = rest.split()
            for name in allowed if names == ["."] else names:
                assert name in allowed, f".dockerignore keeps {name} from the build"
                (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, folder / name)
        elif word == "RUN":
            command = PLACES.sub(rf"{root}/\1", rest).replace("&& python ", f"&& {sys.executable} ")
            command = re.sub(r"^python ", f"{sys.executable} ", command)
            done = subprocess.run(["sh", "-ec", command], cwd=folder, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{rest}\n{done.stdout}{done.stderr}"


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.lstat().st_size, file.lstat().st_mtime_ns) for file in folder.rglob("*")}


@pytest.mark.long
def test_the_image_builds_starts_turns_healthy_writes_only_its_data_and_ends_on_sigterm(tmp_path: Path) -> None:
    build_image(tmp_path)
    app, final = tmp_path / "app", stages()[-1]
    assert not (app / "bin" / "python").resolve().is_relative_to(ROOT)
    assert not list((app / "lib").rglob("pip")), "no package manager in the environment"
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as wheel:
        assert not [name for name in wheel.namelist() if name.endswith(".pth")]
    before = snapshot(app)
    settings = dict(re.findall(r"(\w+)=(\S+)", PLACES.sub(rf"{tmp_path}/\1", said(final, "ENV"))))
    settings |= {"PATH": f"{app}/bin", "TOLLKEEPER_SERVER__PORT": "40917", "OPENAI_API_KEY": "sk-nothing"}
    folder = tmp_path / said(final, "WORKDIR").lstrip("/")
    command = [app / "bin" / "tollkeeper", "serve", "--host", "127.0.0.1"]
    started = subprocess.Popen(command, env=settings, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        probe = re.findall(r'"((?:[^"\\]|\\.)*)"', said(final, "HEALTHCHECK").split("CMD", 1)[1])
        deadline = time.monotonic() + 30
        while subprocess.run([app / "bin" / probe[0], *probe[1:]], env=settings, capture_output=True).returncode:
            assert time.monotonic() < deadline, "never healthy"
            assert started.poll() is None, started.communicate()[1]
        started.terminate()
        said_last = started.communicate(timeout=40)[1]
        assert started.returncode == 0, said_last
    finally:
        started.kill()
    assert snapshot(app) == before, "it wrote outside its volume"
    assert {file.name for file in folder.iterdir()} <= {"tollkeeper.db", "tollkeeper.db-wal", "tollkeeper.db-shm"}
    assert (folder / "tollkeeper.db").exists()
