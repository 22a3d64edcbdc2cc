"""Other gateways that can be run beside ours, each in an environment of its own under .bench/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from bench import subjects

LITELLM: Final = ("litellm[proxy]==1.106.2", "prometheus-client==0.24.1")
PLACE: Final = subjects.ROOT / ".bench" / "litellm"
START_SECONDS: Final = 90.0  # it imports for a long time

_CONFIG: Final = """\
model_list:
  - model_name: gpt-4o-mini
    litellm_params: {{model: openai/gpt-4o-mini, api_base: "{provider}/v1", api_key: sk-bench}}
litellm_settings:
  callbacks: [prometheus]
general_settings:
  master_key: {key}
"""


def installed() -> bool:
    return (PLACE / "bin" / "litellm").exists()


def install() -> None:
    """Into .bench/litellm, from the package index that pip is set up for.  Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "venv", str(PLACE)], check=True)  # noqa: S603 - our own command
    pip = [str(PLACE / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *LITELLM], check=True)  # noqa: S603 - our own command


def litellm(folder: Path, core: int, provider: str) -> subjects.Subject:
    """Its proxy: one worker, a master key, Prometheus on, no database."""
    port, home = subjects.free_port(), folder / "litellm"
    home.mkdir(parents=True)
    file = home / "config.yaml"
    file.write_text(_CONFIG.format(provider=provider, key=subjects.KEY))
    command = [
        str(PLACE / "bin" / "litellm"),
        "--config",
        str(file),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    quiet = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # nothing is fetched at the start
        "LITELLM_LOG": "ERROR",
        "LITELLM_TELEMETRY": "False",
    }
    return subjects.start("litellm", command, home, core, port, quiet)
