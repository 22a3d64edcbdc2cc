"""Which targets serve a model, and in which order they are tried."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gateway import settings
from gateway.providers import Provider


@dataclass(slots=True, frozen=True, eq=False)
class Target:
    """One model at one provider."""

    alias: str  # the model's name in config.yaml
    provider: Provider
    model: str  # the model's name at the provider
    weight: int = 1


@dataclass(slots=True, frozen=True, eq=False)
class Model:
    """A configured model: its targets, and the models that stand in for it."""

    name: str
    targets: tuple[Target, ...]
    fallbacks: tuple[str, ...]
    max_attempts: int


class Targets:
    """Models by name and alias; each asks for an order of targets once per request."""

    def __init__(self, models: Mapping[str, settings.Model], providers: Mapping[str, Provider]) -> None:
        self._models: dict[str, Model] = {}
        for name, said in models.items():
            targets = tuple(Target(name, providers[t.provider], t.model, t.weight) for t in said.targets)
            model = Model(name, targets, tuple(said.fallbacks), said.max_attempts)
            for known in (name, *said.aliases):
                self._models[known] = model
        self.names = tuple(models)
        self._any = {name: Target("", provider, "") for name, provider in providers.items()}

    def all(self, name: str) -> tuple[Target, ...]:
        return self._models[name].targets

    def find(self, name: str) -> Model | None:
        return self._models.get(name)

    def provider(self, name: str) -> Target:
        """Where calls go that name no model."""
        return self._any[name]

    def order(self, model: Model) -> Iterator[Target]:
        """A model's targets, drawn by weight without replacement, then its fallbacks' in the order of config.yaml."""
        yield from _drawn(model.targets)
        for name in model.fallbacks:
            yield from _drawn(self._models[name].targets)


def _drawn(targets: tuple[Target, ...]) -> Iterator[Target]:
    if len(targets) == 1:
        yield targets[0]
        return
    left = list(targets)
    while left:
        total = sum(target.weight for target in left)
        if total == 0:  # weight 0: in the order given, when the others have failed
            yield from left
            return
        draw = random.randrange(total)  # noqa: S311 - spreads load; nothing secret depends on it
        for target in left:
            draw -= target.weight
            if draw < 0:
                break
        left.remove(target)
        yield target
