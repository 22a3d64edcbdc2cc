"""Every error a caller can see, drawn as a tree; each has a stable code that applications may switch on.

GatewayError
├── BadCall        what was asked cannot be understood or is too large             400 404 405 408 413 415 431
├── Unidentified   who is asking cannot be established                             400 401
├── Denied         a policy refused                                                any 4xx
├── UpstreamError  the provider refused, failed, or broke off                      as the provider said, or 502 504
├── Unavailable    we cannot serve this now: no connection free, shutting down     503
├── ClientGone     the caller hung up; nobody is left to read an answer            499
└── Broken         a defect of ours; the message names nothing of the inside       500
"""

from __future__ import annotations

from typing import Final

# The stable words.  Applications switch on them: a word is never reused for something else.
CODES: Final = frozenset(
    {
        # what was asked
        "invalid_json", "invalid_request", "invalid_type", "duplicate_field", "body_too_large", "body_incomplete",
        "unsupported_media_type", "unsupported_encoding", "method_not_allowed", "not_found", "model_not_found",
        "provider_required", "already_exists", "declared_in_config", "in_use", "already_revoked",
        "below_committed",
        # who asks
        "missing_api_key", "invalid_api_key", "several_api_keys", "admin_only", "not_allowed",
        # what a policy decided
        "model_not_allowed", "policy_failed", "budget_exhausted", "budget_contended", "budget_frozen",
        "budget_unavailable", "model_unpriced", "rate_limited",
        "blocked_by_safety", "idempotency_in_flight", "idempotency_mismatch",
        # what the provider did
        "upstream_refused", "upstream_rate_limited", "upstream_auth", "upstream_error", "upstream_unavailable",
        "upstream_timeout", "upstream_protocol", "upstream_broke_off", "upstream_too_large",
        # what we could not do
        "overloaded", "shutting_down", "client_gone", "internal_error",
    }
)  # fmt: skip


class GatewayError(Exception):
    """What went wrong, in words for the application's developer, with what to do next.

    status: HTTP status.  code: one of CODES.  kind: OpenAI's `error.type`.  param: the field at fault, if one is.
    retry_after: whole seconds until a retry can help.  should_retry: False where a retry cannot mend it.
    said: the provider's own code, told to the caller in place of ours where applications switch on it.
    """

    status = 500
    code = "internal_error"
    kind = "api_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.status = status or type(self).status
        self.param = param
        self.retry_after = retry_after
        self.should_retry = should_retry
        self.said = ""


class BadCall(GatewayError):
    """What was asked cannot be understood, does not exist, or is too large."""

    status = 400
    code = "invalid_request"
    kind = "invalid_request_error"


class Unidentified(GatewayError):
    """Who is asking cannot be established."""

    status = 401
    code = "invalid_api_key"
    kind = "invalid_request_error"


class Denied(GatewayError):
    """A policy refused the call."""

    status = 403
    code = "model_not_allowed"
    kind = "permission_error"


class UpstreamError(GatewayError):
    """The provider refused, failed, or broke off.

    retryable: the next target may be tried (as long as no byte has reached the caller).
    free: the provider certainly billed nothing for this attempt.
    """

    status = 502
    code = "upstream_error"
    kind = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        should_retry: bool | None = None,
        retryable: bool = True,
        free: bool = False,
        kind: str | None = None,
        said: str = "",
    ) -> None:
        super().__init__(
            message, code=code, status=status, param=param, retry_after=retry_after, should_retry=should_retry
        )
        self.retryable = retryable
        self.free = free
        self.said = said
        if kind:
            self.kind = kind

    def veiled(self) -> UpstreamError:
        """The same without a word of the provider's own but a code of lower-case letters."""
        if self.code != "upstream_refused":
            return self  # it is in our words
        said = self.said if self.said.isascii() and self.said.replace("_", "").isalpha() and self.said.islower() else ""
        return UpstreamError(
            f"The provider refused the call ({self.status}). Its words are withheld, for safety assessors act here.",
            code=self.code, status=self.status, kind=self.kind, retryable=self.retryable, free=self.free, said=said,
            should_retry=self.should_retry,
        )  # fmt: skip


class Unavailable(GatewayError):
    """We cannot serve this now; it is worth asking again."""

    status = 503
    code = "overloaded"
    kind = "overloaded_error"


class ClientGone(GatewayError):
    """The caller hung up."""

    status = 499
    code = "client_gone"
    kind = "client_closed_request"


class Broken(GatewayError):
    """A defect of ours.  The cause is in the log, under the request's id."""
