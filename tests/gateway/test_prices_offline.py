"""Prices come from a file of the installation: a start makes no connection, and every figure names its source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.processes import environment

START = """
import asyncio, sys
asked = []
sys.addaudithook(lambda event, told: asked.append((event, told[-1])) if event in (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request") else None)

from datetime import date
from gateway import config
from gateway.app import Gateway

async def main():
    gateway = Gateway(config.load(sys.argv[1], {}))
    await gateway.open()
    rate = gateway.prices.rate("gpt-4o-mini", "openai", "gpt-4o-mini", date(2026, 11, 1))
    print(rate.revision)
    await gateway.close()

asyncio.run(main())
assert asked == [], asked
"""
CONFIG = """
store: sqlite:///{0}/tollkeeper.db
providers:
  openai: {{base_url: "https://api.openai.com/v1", api_key: sk-x}}
models:
  gpt-4o-mini: {{targets: [{{provider: openai, model: gpt-4o-mini}}]}}
teams:
  checkout: {{keys: [{{name: web, key: tk-the-key-of-checkout}}], budgets: [{{limit_usd: 5, per: month}}]}}
"""


def test_a_start_makes_no_connection_and_prices_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(tmp_path))
    command = [sys.executable, "-c", START, str(tmp_path / "config.yaml")]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, env=environment(PYTHONPATH=root), timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("genai-prices"), done.stdout
