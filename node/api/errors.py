"""RFC 9457 problem documents: every error names the field at fault, where there is one, and the remedy."""

import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from node.api.fields import CriterionModel
from node.api.view import RefusedTransaction, ViewError

logger = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ProblemModel(BaseModel):
    """RFC 9457 problem details, with `field`, `remedy` and, for refused transactions, `reason`."""

    type: str = Field(description="A URN that names the kind of problem")
    title: str
    status: int
    detail: str
    instance: str = Field(description="Path of the request")
    field: str | None = Field(default=None, description="Parameter or body field at fault")
    remedy: str = Field(description="What the caller can do")
    reason: str | None = Field(default=None, description="The rule that refused a transaction")
    criteria: tuple[CriterionModel, ...] | None = Field(
        default=None, description="Of `/readyz`: each criterion, met or not"
    )


class Problem(Exception):
    """An error that becomes a problem document."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        remedy: str,
        field: str | None = None,
        reason: str | None = None,
        headers: Mapping[str, str] | None = None,
        criteria: tuple[CriterionModel, ...] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.remedy = remedy
        self.field = field
        self.reason = reason
        self.headers = dict(headers or {})
        self.criteria = criteria

    def build_response(self, instance: str) -> web.Response:
        model = ProblemModel(
            type=f"urn:bmif:problem:{self.kind}",
            title=self.kind.replace("-", " ").capitalize(),
            status=self.status,
            detail=self.detail,
            instance=instance,
            field=self.field,
            remedy=self.remedy,
            reason=self.reason,
            criteria=self.criteria,
        )
        return web.Response(
            status=self.status,
            text=model.model_dump_json(exclude_none=True),
            content_type=PROBLEM_TYPE,
            headers=self.headers,
        )


def build_parameter_problem(field: str, detail: str, remedy: str) -> Problem:
    """400: a path or query parameter is malformed."""
    return Problem(400, "bad-parameter", detail, field=field, remedy=remedy)


def build_not_found(field: str, what: str, remedy: str) -> Problem:
    """404: well-formed, but nothing of that name."""
    return Problem(404, "not-found", f"No {what}", field=field, remedy=remedy)


def build_held_elsewhere(what: str, base: int) -> Problem:
    """404 for what this node knows of and left out, or never had."""
    return Problem(
        404,
        "held-by-archive-nodes",
        f"{what} is on the chain, but this node holds bodies from height {base} on",
        remedy="Ask a node that was there, or one that keeps an archive",
    )


def build_body_problem(error: ValidationError) -> Problem:
    """422 for the first wrong field of a JSON body; the values themselves are not echoed."""
    first = error.errors(include_input=False, include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "(body)"
    more = len(error.errors()) - 1
    detail = first["msg"] + (f" (and {more} more)" if more else "")
    return Problem(422, "bad-body", detail, field=field, remedy="Send the body that /openapi.json describes")


def _build_from_http(error: web.HTTPException) -> Problem:
    if error.status == 404:
        return Problem(
            404, "no-such-route", "There is no such path", remedy="See /openapi.json for all paths"
        )
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem(
            405,
            "method-not-allowed",
            f"{error.method} is not possible here",
            remedy=f"Use {allowed}",
            headers={"Allow": allowed},
        )
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Problem(
            413,
            "body-too-large",
            error.text or "The body is too large",
            field="(body)",
            remedy="Send a smaller body",
        )
    if error.status == 415:
        return Problem(415, "unsupported-media-type", error.text or error.reason, remedy="See /openapi.json")
    return Problem(error.status, "http-error", error.reason, remedy="See /openapi.json")


def _build_from_view(error: ViewError) -> Problem:
    if not isinstance(error, RefusedTransaction):
        return Problem(409, "not-possible-now", error.detail, remedy=error.remedy)
    if error.reason == "MEMPOOL_FULL":
        return Problem(
            503,
            "mempool-full",
            error.detail,
            remedy=error.remedy,
            reason=error.reason,
            headers={"Retry-After": "2"},
        )
    return Problem(
        422,
        "refused-transaction",
        error.detail,
        field="transaction",
        remedy=error.remedy,
        reason=error.reason,
    )


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure into a problem document; an unexpected one is logged here and told to nobody."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem.build_response(request.path)
    except ViewError as error:
        return _build_from_view(error).build_response(request.path)
    except ValidationError as error:
        logger.error("a response did not fit its schema: %s %s: %s", request.method, request.path, error)
        failure = Problem(500, "internal-error", "The node failed to answer", remedy="See the node's log")
        return failure.build_response(request.path)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _build_from_http(error).build_response(request.path)
    except (LookupError, ValueError, TypeError, ArithmeticError, OSError, RuntimeError):
        if request.transport is None or request.transport.is_closing():
            raise
        logger.exception("unexpected failure: %s %s", request.method, request.path)
        failure = Problem(500, "internal-error", "The node failed to answer", remedy="See the node's log")
        return failure.build_response(request.path)
