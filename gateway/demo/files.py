"""Files kept by the simulated provider: multipart uploads read as they arrive, into temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from email.message import Message
from typing import IO, Any, Final

from gateway.demo.reply import Refusal, Reply, Step, of_json

BLOCK: Final = 64 * 1024  # bytes of a download per write
LARGEST_FIELD: Final = 64 * 1024  # bytes of a form field that is no file, and of a part's head


class Part:
    """One part of a form that is a file."""

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self.size = 0
        self.data: IO[bytes] = tempfile.SpooledTemporaryFile(1024 * 1024)  # noqa: SIM115  closed by `close`

    def blocks(self) -> Iterator[Step]:
        self.data.seek(0)
        while block := self.data.read(BLOCK):
            yield Step(block)

    def close(self) -> None:
        self.data.close()


class Upload:
    """A multipart/form-data body (RFC 7578), read as it arrives, holding one piece of it at a time."""

    def __init__(self, content_type: str) -> None:
        head = Message()
        head["content-type"] = content_type
        self.fields: dict[str, str] = {}
        self.files: dict[str, Part] = {}
        self.complete = False
        self._boundary = b"\r\n--" + (head.get_boundary("") or "").encode()
        self._buffer = bytearray(b"\r\n")  # so that the first boundary looks like the others
        self._name: str | None = None  # of the part being read; None: the head comes next
        self._part: Part | None = None
        self._preamble = True

    def feed(self, data: bytes) -> None:
        """Raises nothing: what is no form leaves `complete` False."""
        self._buffer += data
        while not self.complete:
            inside = self._preamble or self._name is not None
            if not (self._read_body() if inside else self._read_head()):
                return

    def _read_body(self) -> bool:
        """Read up to the next boundary; whether it was found."""
        at = self._buffer.find(self._boundary)
        end = at if at >= 0 else max(0, len(self._buffer) - len(self._boundary) + 1)
        self._keep(bytes(self._buffer[:end]))
        if at < 0:
            del self._buffer[:end]
            return False
        del self._buffer[: at + len(self._boundary)]
        self._name, self._part, self._preamble = None, None, False
        return True

    def _keep(self, data: bytes) -> None:
        if self._part is not None:
            self._part.data.write(data)
            self._part.size += len(data)
        elif self._name is not None:
            text = self.fields.get(self._name, "") + data.decode("utf-8", "replace")
            self.fields[self._name] = text[:LARGEST_FIELD]

    def _read_head(self) -> bool:
        if self._buffer.startswith(b"--"):
            self.complete = True
            return False
        at = self._buffer.find(b"\r\n\r\n")
        if at < 0:
            del self._buffer[LARGEST_FIELD:]
            return False
        head = Message()
        for line in self._buffer[:at].decode("utf-8", "replace").split("\r\n"):
            name, _, value = line.partition(":")
            if value:
                head[name] = value.strip()
        del self._buffer[: at + 4]
        self._name = str(head.get_param("name", "", "content-disposition"))
        filename = head.get_filename()
        if filename is not None:
            self._part = self.files[self._name] = Part(filename)
        return True

    def close(self) -> None:
        for part in self.files.values():
            part.close()


class Files:
    """The files of this process, in the order they came."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[dict[str, Any], Part]] = {}

    def create(self, upload: Upload, now: int) -> Reply:
        part = upload.files.pop("file", None)
        upload.close()
        if part is None or not upload.complete or "purpose" not in upload.fields:
            if part is not None:
                part.close()
            field = "file" if part is None else "purpose"
            raise Refusal(400, f"'{field}' is a required property", param=field)
        entry: dict[str, Any] = {
            "id": f"file-sim{len(self._kept):08d}{now}",
            "object": "file",
            "bytes": part.size,
            "created_at": now,
            "filename": part.filename,
            "purpose": upload.fields["purpose"],
            "status": "processed",
            "expires_at": None,
            "status_details": None,
        }
        self._kept[entry["id"]] = (entry, part)
        return of_json(entry)

    def serve(self, method: bytes, rest: str) -> Reply:
        """`rest`: the path after /v1/files/, `""` for the list."""
        if not rest:
            entries = [entry for entry, _ in self._kept.values()]
            ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"]} if entries else {}
            return of_json({"object": "list", "data": entries, "has_more": False, **ends})
        id, _, tail = rest.partition("/")
        if id not in self._kept or tail not in ("", "content"):
            raise Refusal(404, f"No such File object: {id}", param="id")
        entry, part = self._kept[id]
        if method == b"DELETE" and not tail:
            del self._kept[id]
            part.close()
            return of_json({"id": id, "object": "file", "deleted": True})
        if method != b"GET":
            raise Refusal(405, f"Not allowed to {method.decode()} on /v1/files/{rest}")
        if not tail:
            return of_json(entry)
        return Reply(part.blocks(), content_type="application/octet-stream", length=part.size)

    def close(self) -> None:
        for _, part in self._kept.values():
            part.close()
        self._kept.clear()
