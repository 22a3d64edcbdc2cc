"""The providers known by name."""

from __future__ import annotations

import re

from genai_prices.data_snapshot import get_snapshot

from gateway.source import Source
from gateway.vendors import CLOSED, VENDORS, fill


def test_no_two_vendors_share_a_name_a_variable_or_a_model() -> None:
    models = [model for vendor in VENDORS for model in vendor.models]
    variables = [*(vendor.variable for vendor in VENDORS), *CLOSED]
    assert len(set(models)) == len(models)
    assert len(set(variables)) == len(variables)
    assert len({vendor.name for vendor in VENDORS}) == len(VENDORS)


def test_every_model_and_every_address_is_known_to_the_price_catalogue() -> None:
    snapshot = get_snapshot()
    sellers = {seller.id: seller for seller in snapshot.providers}
    for vendor in VENDORS:
        seller = sellers[vendor.catalogue or vendor.name]
        assert re.match(seller.api_pattern, vendor.base_url), vendor.name
        unknown = [model for model in vendor.models if not seller.find_model(model, all_providers=snapshot.providers)]
        assert unknown == [], vendor.name


def test_only_vendors_whose_variable_is_set_are_filled_in() -> None:
    source = Source("environment", {"GROQ_API_KEY": "gsk-1", "XAI_API_KEY": "", "ANTHROPIC_API_KEY": "sk-2"})
    fill(source)
    assert source.tree["providers"] == {"groq": {"base_url": "https://api.groq.com/openai/v1", "api_key": "gsk-1"}}
    assert source.tree["models"]["llama-3.1-8b-instant"]["targets"][0]["provider"] == "groq"
    assert source.place(("providers", "groq", "api_key")).file == "$GROQ_API_KEY"


def test_openais_address_can_be_moved_and_may_then_need_no_key() -> None:
    source = Source("environment", {"OPENAI_BASE_URL": "http://127.0.0.1:8080/v1"})
    fill(source)
    assert source.tree["providers"] == {"openai": {"base_url": "http://127.0.0.1:8080/v1"}}
