"""A simulated provider: an HTTP server that speaks the OpenAI API, commits faults on request and keeps its own bill.

    python -m gateway.demo.simulator --port 0 [--pace none|realistic|TOKENS_PER_SECOND] [--keys k1,k2]

prints `listening on http://127.0.0.1:PORT`.  Answers depend on the prompt alone (chat.py says what a prompt can ask
for), faults are listed in faults.py, the rules of the bill in bill.py.  Beside the API, without a key:

    GET  /sim/bill?after=N   {rows, count, models, nano_usd}; `rows=none` leaves the rows out
    GET  /sim/stats          answers by endpoint and status, tokens written, faults, open connections, CPU seconds
    GET  /sim/connections    {open, now, requests: [{id, attempt, opened, closed, finished, ago}]}, in Unix seconds:
                             answers under way, and the last 10,000 that ended.  closed: when the end was noticed;
                             finished: false where the caller left.  A ready answer in one write is not listed
    POST /sim/faults         {"rate": 0.1, "fault": "status=503", "model": "sim-small"} adds a fault at a rate (`model`
                             may be left out); DELETE forgets them all
    POST /sim/reset          a new bill, new counts, no fault rates, no files, an empty prompt cache

A row's `id` ends both the answer's id and its `x-request-id`.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec

from gateway.demo import faults
from gateway.demo.asked import Prefixes
from gateway.demo.bill import PRICES, Bill, Charge
from gateway.demo.chat import chat, completions
from gateway.demo.control import Control, Watched
from gateway.demo.embeddings import embeddings
from gateway.demo.files import Files, Upload
from gateway.demo.media import moderations, speech, transcription
from gateway.demo.pace import Pace
from gateway.demo.player import Player
from gateway.demo.reply import Identity, Refusal, Reply, Step, framed, of_json, sliced, stamped
from gateway.demo.responses import responses
from gateway.demo.spawned import Spawned, spawn
from gateway.demo.wire import Connection, Request

__all__ = ["PRICES", "Simulator", "Spawned", "running", "spawn"]

READY: Final = 4096  # answers kept ready …
READY_BODY: Final = 32 * 1024  # … to requests of at most so many bytes
READY_RAW: Final = 64 * 1024  # an answer up to this size is written at once where there is no pace

Handler = Callable[[dict[str, Any], Prefixes], Reply]
HANDLERS: Final[dict[str, tuple[str, Handler]]] = {
    "/v1/chat/completions": ("chat", chat),
    "/v1/completions": ("completions", completions),
    "/v1/responses": ("responses", responses),
    "/v1/embeddings": ("embeddings", lambda body, _: embeddings(body)),
    "/v1/audio/speech": ("speech", lambda body, _: speech(body)),
    "/v1/moderations": ("moderations", lambda body, _: moderations(body)),
}
UPLOADS: Final = ("/v1/files", "/v1/audio/transcriptions")


class Ready:
    """An answer to a body that came before: its whole wire form, and its framed steps where there is a pace."""

    __slots__ = ("charge", "raw", "reply", "steps")

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.charge = reply.charge
        self.steps = list(framed(reply))
        raw = b"".join(step.data for step in self.steps)
        self.raw = raw if len(raw) <= READY_RAW else b""


class Simulator:
    """The server's state; one per process or test.  Raises ValueError on a pace that cannot be read."""

    def __init__(self, pace: str = "none", keys: tuple[str, ...] = ()) -> None:
        self.pace = Pace.read(pace)
        self.keys = frozenset(f"Bearer {key}".encode() for key in keys)
        self.connections: set[Connection] = set()
        self.url = ""
        self._salt = secrets.token_hex(4)
        self._last = 0  # number of the last answer
        self._files = Files()
        self.reset()

    def reset(self) -> None:
        self.bill = Bill()
        self.control = Control()
        self._prefixes = Prefixes()
        self._ready: dict[tuple[bytes, bytes], Ready] = {}
        self._files.close()

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(self, loop), host, port, backlog=4096)
        self.url = f"http://{host}:{server.sockets[0].getsockname()[1]}"
        return server

    def close(self) -> None:
        for connection in list(self.connections):
            connection.transport.abort()
        self._files.close()

    # a request's way

    def head(self, request: Request) -> Reply | None:
        word = request.header(b"x-sim-fault")
        if word is not None and "early" in word:
            with suppress(Refusal):  # a fault that does not exist is told once the request is there
                chosen = faults.read(word)
                if "early" in chosen:
                    self.control.faults["early"] += 1
                    return faults.refusal(chosen)
        if request.method == b"POST" and request.path in UPLOADS:
            request.upload = Upload(request.header(b"content-type") or "")
        return None

    def serve(self, request: Request, connection: Connection) -> None:
        plain = b"x-sim-fault" not in request.headers and not self.control.rates
        if plain and request.keep_alive and not request.http10:
            ready = self._ready.get((request.target, request.body))
            if ready is not None and (not self.keys or request.headers.get(b"authorization") in self.keys):
                self._serve_ready(ready, request, connection)
                return
        identity = self._identity()
        try:
            reply = self._answer(request, identity)
        except Refusal as refusal:
            reply = refusal.reply()
        if plain and reply.reusable and len(request.body) <= READY_BODY:
            if len(self._ready) >= READY:
                del self._ready[next(iter(self._ready))]
            self._ready[request.target, request.body] = Ready(reply)
        self.play(reply, request, connection, identity)

    def _serve_ready(self, ready: Ready, request: Request, connection: Connection) -> None:
        charge, identity = ready.charge, self._identity()
        if self.pace.waits or not ready.raw or connection.blocked or charge is None:
            self._play(ready.reply, ready.steps, request, connection, identity)
            return
        connection.transport.write(stamped(ready.raw, identity))
        self.bill.complete(identity[0].decode(), request.header(b"x-tollkeeper-attempt"), charge)
        self.control.answers[charge.endpoint, 200] += 1
        self.control.tokens += charge.output - charge.reasoning
        connection.answered()

    def _identity(self) -> Identity:
        self._last += 1
        return f"{self._salt}{self._last:016d}".encode(), b"%d" % (time.time_ns() // 1_000_000_000)

    def _answer(self, request: Request, identity: Identity) -> Reply:
        path = request.path
        if path.startswith("/sim/"):
            return self._sim(request, path)
        if self.keys and request.headers.get(b"authorization") not in self.keys:
            raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")
        chosen = self.control.choose(request.header(b"x-sim-fault") or "", request.body)
        reply = faults.refusal(chosen) or self._route(request, path)
        return faults.spoil(reply, chosen, identity) if chosen else reply

    def _route(self, request: Request, path: str) -> Reply:
        method = request.method
        if path in HANDLERS and method == b"POST":
            body = _decoded(request.body)
            if not isinstance(body, dict):
                raise Refusal(400, "The JSON body of your request is not an object.")
            return HANDLERS[path][1](body, self._prefixes)
        if request.upload is not None:
            if path == "/v1/files":
                return self._files.create(request.upload, time.time_ns() // 1_000_000_000)
            return transcription(request.upload)
        if path == "/v1/files" or path.startswith("/v1/files/"):
            return self._files.serve(method, path[10:])
        if path == "/v1/models" and method == b"GET":
            return of_json({"object": "list", "data": [_model(name) for name in PRICES]})
        if path.startswith("/v1/models/") and method == b"GET":
            name = path.removeprefix("/v1/models/")
            if name not in PRICES:
                raise Refusal(404, f"The model '{name}' does not exist", code="model_not_found", param="model")
            return of_json(_model(name))
        if path in HANDLERS or path in UPLOADS or path == "/v1/models":
            raise Refusal(405, f"Not allowed to {method.decode()} on {path}")
        raise Refusal(404, f"Invalid URL ({method.decode()} {path})", code="unknown_url")

    def play(self, reply: Reply, request: Request, connection: Connection, identity: Identity | None = None) -> None:
        """Write the answer at its pace."""
        if not request.keep_alive:
            reply.close = True
        if request.method == b"HEAD":
            reply.steps = []
        identity = identity or self._identity()
        steps: Iterable[Step] = framed(reply, request.http10)
        if reply.slice:
            steps = sliced((step._replace(data=stamped(step.data, identity)) for step in steps), reply.slice)
        self._play(reply, steps, request, connection, identity)

    def _play(
        self, reply: Reply, steps: Iterable[Step], request: Request, connection: Connection, identity: Identity
    ) -> None:
        control, bill = self.control, self.bill  # those of now: a reset does not get the end of what began before
        watched = None
        if not request.target.startswith(b"/sim/"):
            watched = control.open(identity[0].decode(), request.header(b"x-tollkeeper-attempt"))

        def done(player: Player) -> None:
            if watched is not None:
                control.close(watched, player.finished)
                _settle(control, bill, reply, request, player, watched)

        player = Player(connection, iter(steps), (reply.pace or self.pace).draw(), identity, done)
        player.close = reply.close or (request.http10 and reply.length is None)
        player.reasoning = reply.charge.reasoning if reply.charge else 0
        connection.player = player
        player.run()

    def _sim(self, request: Request, path: str) -> Reply:
        query, call, count = request.query, (request.method, path), len(self.connections)
        if call == (b"GET", "/sim/bill"):
            after = query.get("after", "0")
            if not after.isdecimal():
                raise Refusal(400, "`after` is the number of rows to leave out", param="after")
            return of_json(self.bill.plain(int(after), query.get("rows") != "none"))
        if call == (b"GET", "/sim/stats"):
            return of_json(self.control.stats(count))
        if call == (b"GET", "/sim/connections"):
            return of_json(self.control.connections(count))
        if call == (b"POST", "/sim/faults"):
            return of_json(self.control.add_rate(_decoded(request.body)))
        if call == (b"DELETE", "/sim/faults"):
            self.control.rates.clear()
            return of_json([])
        if call == (b"POST", "/sim/reset"):
            self.reset()
            return of_json({})
        raise Refusal(404, f"Invalid URL ({request.method.decode()} {path})", code="unknown_url")


def _settle(control: Control, bill: Bill, reply: Reply, request: Request, player: Player, watched: Watched) -> None:
    """The answer ended, one way or another: write the bill."""
    charge, path = reply.charge, request.path
    if charge is None:
        endpoint = HANDLERS[path][0] if path in HANDLERS else path.removeprefix("/v1/")
        control.answers[endpoint, reply.status] += 1
        if reply.status >= 300 and request.method == b"POST" and (path in HANDLERS or path in UPLOADS):
            named = Charge(_named(request.body), endpoint, 0)
            bill.free(watched.id, watched.attempt, named, f"status {reply.status}")
        return
    control.answers[charge.endpoint, reply.status] += 1
    control.tokens += player.written
    if reply.unbilled and player.finished:
        bill.free(watched.id, watched.attempt, charge.part(player.written), reply.unbilled)
    elif player.finished:
        bill.complete(watched.id, watched.attempt, charge)
    else:
        part = charge.part(player.written) if reply.streamed else charge
        bill.abandoned(watched.id, watched.attempt, part)


class _Named(msgspec.Struct):
    model: str = ""


def _named(body: bytes) -> str:
    """The model that a refused request named, where it exists; else sim-free."""
    try:
        model = msgspec.json.decode(body, type=_Named).model
    except msgspec.DecodeError:
        return "sim-free"
    return model if model in PRICES else "sim-free"


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise Refusal(400, f"We could not parse the JSON body of your request: {error}") from error


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"}


@asynccontextmanager
async def running(pace: str = "none", keys: tuple[str, ...] = ()) -> AsyncGenerator[Simulator, None]:
    """A simulator inside this process and loop; `.url` is its address, `.bill` its bill."""
    simulator = Simulator(pace, keys)
    server = await simulator.listen()
    try:
        yield simulator
    finally:
        server.close()
        simulator.close()
        await server.wait_closed()


async def _main(options: argparse.Namespace) -> None:
    simulator = Simulator(options.pace, tuple(key for key in options.keys.split(",") if key))
    server = await simulator.listen(port=options.port)
    print(f"listening on {simulator.url}", flush=True)
    if not options.with_parent:
        await server.serve_forever()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)  # the parent's end of the pipe closes with it
    await ended.wait()
    simulator.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.demo.simulator", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--pace", default="none", help="none, realistic, or tokens per second")
    parser.add_argument("--keys", default="", help="comma list of accepted keys; empty: any")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    options = parser.parse_args()
    with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_main(options))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # there is none for this system: asyncio's own, slower
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
