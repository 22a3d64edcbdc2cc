"""How a Valkey or Redis is reached: by connections that give up early, so that no request waits for a server."""

from __future__ import annotations

from typing import Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

AWAY: Final = (RedisError, OSError)  # what is raised where a server is away; TimeoutError is an OSError
ANSWER: Final = 0.1  # seconds; a server that needs longer is left alone for a while
PROBE: Final = 0.5  # seconds between two looks at a server that is away
PREFIX: Final = "{tollkeeper}:"  # one hash tag: every key is in one slot of a cluster


def connect(url: str, connections: int, patience: float) -> Redis:
    """url: valkey://host:6379/0, redis:// the same, valkeys:// or rediss:// with TLS.  Connects when it is used.

    patience: seconds the server has for connecting, and for each answer.  Nothing is tried again by itself.
    """
    pool = BlockingConnectionPool.from_url(
        url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
        max_connections=connections,
        timeout=patience,
        socket_timeout=patience,
        socket_connect_timeout=patience,
        retry=Retry(NoBackoff(), 0),
        protocol=3,
        health_check_interval=30,
    )
    return Redis.from_pool(pool)  # closes the pool with itself
