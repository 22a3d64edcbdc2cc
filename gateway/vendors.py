"""The providers that need no file, only one environment variable each, and the models they usually serve."""

from __future__ import annotations

from typing import Final, NamedTuple

from gateway.source import Source


class Vendor(NamedTuple):
    """A provider that speaks OpenAI's dialect.  catalogue: its id in the price catalogue, where its name differs."""

    name: str
    variable: str
    base_url: str
    models: tuple[str, ...]
    catalogue: str | None = None


# No two of them offer a model under the same name: which of them would serve it could not be seen from the outside.
VENDORS: Final = (
    Vendor(
        "openai",
        "OPENAI_API_KEY",
        "https://api.openai.com/v1",
        (
            *("gpt-5.2", "gpt-5.1", "gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano"),
            *("gpt-4o", "gpt-4o-mini", "o3", "o4-mini", "text-embedding-3-small", "text-embedding-3-large"),
        ),
    ),
    Vendor(
        "groq",
        "GROQ_API_KEY",
        "https://api.groq.com/openai/v1",
        (
            "llama-3.3-70b-versatile",
            "llama-3.1-8b-instant",
            "qwen/qwen3-32b",
            "openai/gpt-oss-120b",
            "openai/gpt-oss-20b",
        ),
    ),
    Vendor(
        "mistral",
        "MISTRAL_API_KEY",
        "https://api.mistral.ai/v1",
        ("mistral-medium-latest", "mistral-small-latest", "ministral-8b-latest", "mistral-embed"),
    ),
    Vendor("deepseek", "DEEPSEEK_API_KEY", "https://api.deepseek.com/v1", ("deepseek-chat", "deepseek-reasoner")),
    Vendor(
        "together",
        "TOGETHER_API_KEY",
        "https://api.together.xyz/v1",
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "Qwen/Qwen3.5-9B"),
    ),
    Vendor(
        "openrouter",
        "OPENROUTER_API_KEY",
        "https://openrouter.ai/api/v1",
        ("openai/gpt-4o-mini", "anthropic/claude-sonnet-4.5", "google/gemini-2.5-flash", "deepseek/deepseek-chat-v3.1"),
    ),
    Vendor("xai", "XAI_API_KEY", "https://api.x.ai/v1", ("grok-4.3", "grok-3-mini"), "x-ai"),
    Vendor(
        "fireworks",
        "FIREWORKS_API_KEY",
        "https://api.fireworks.ai/inference/v1",
        ("accounts/fireworks/models/deepseek-v3p2", "accounts/fireworks/models/gpt-oss-120b"),
    ),
    Vendor("cerebras", "CEREBRAS_API_KEY", "https://api.cerebras.ai/v1", ("llama-3.3-70b", "llama3.1-8b")),
)

CLOSED: Final = {"ANTHROPIC_API_KEY": "Anthropic"}  # variables that are often set, whose dialect is not spoken yet


def fill(source: Source) -> None:
    """Puts every vendor whose variable is set into `source`.

    OPENAI_BASE_URL: another server that speaks OpenAI's dialect; it may need no key.
    """
    environ = source.environ
    for vendor in VENDORS:
        key = environ.get(vendor.variable)
        moved = environ.get("OPENAI_BASE_URL") if vendor.name == "openai" else None
        if not key and not moved:
            continue
        path = ("providers", vendor.name)
        source.put((*path, "base_url"), moved or vendor.base_url, "OPENAI_BASE_URL" if moved else vendor.variable)
        if key:
            source.put((*path, "api_key"), key, vendor.variable)
        if vendor.catalogue:
            source.put((*path, "catalogue"), vendor.catalogue, vendor.variable)
        for model in vendor.models:
            source.put(("models", model), {"targets": [{"provider": vendor.name, "model": model}]}, vendor.variable)
