"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response


class ApiError(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """code, param: a fixed word for programs, and the field at fault."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        kind = "invalid_request_error" if status < 500 else "server_error"
        if status == 429:
            kind = "rate_limit_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        return JSONResponse(self.body, self.status, self.headers)

    def event(self) -> str:
        """The error within a stream that has begun; OpenAI's client raises on it."""
        return f"data: {json.dumps(self.body, ensure_ascii=False)}\n\n"


def internal_error(error: Exception) -> ApiError:
    """A fault of the server's, of which the client learns the kind alone."""
    if isinstance(error, RecursionError):
        return ApiError(400, "the body is nested too deeply", "invalid_json")
    return ApiError(500, f"the request failed ({type(error).__name__}); the server's log says more", "internal")


def install_handlers(app: FastAPI) -> None:
    """Give every error that leaves a route the one shape."""
    app.add_exception_handler(ApiError, _from_api)
    app.add_exception_handler(RequestValidationError, _from_validation)
    app.add_exception_handler(HTTPException, _from_http)
    app.add_exception_handler(RecursionError, _from_bug)
    app.add_exception_handler(Exception, _from_bug)  # uvicorn logs its traceback


def invalid_field(problems: list[Any]) -> ApiError:
    """What is wrong with a body's fields, from pydantic's findings: the first, in one line."""
    problem = problems[0]
    path = [str(part) for part in problem["loc"] if part != "body"]
    name = ".".join(path)
    if problem["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {problem['ctx']['error']} at character {path[0]}", "invalid_json")
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"unknown field {name!r}; this server does not have it", "unknown_field", name)
    if not path:
        return ApiError(400, "the body must be a JSON object, sent as application/json", "invalid_json")
    if problem["type"] == "missing":
        return ApiError(400, f"{name} is missing", "missing_field", name)
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    return ApiError(400, f"{name}: {message}", "invalid_value", name)


async def _from_api(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    request.state.record.error = error.message
    return error.response()


async def _from_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _from_api(request, invalid_field(list(error.errors())))


async def _from_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    api_error = ApiError(error.status_code, str(error.detail), headers=error.headers)
    if error.status_code == 404:
        api_error = ApiError(404, f"nothing here answers {request.method} {request.url.path}", "not_found")
    return await _from_api(request, api_error)


async def _from_bug(request: Request, error: Exception) -> Response:
    return internal_error(error).response()
