"""Wires the server together: routes, and what every request passes on its way to them."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from runtime.async_llm import AsyncLLM
from runtime.server.auth import KeyCheck
from runtime.server.chat import asked_by_chat
from runtime.server.completions import asked_by_completion
from runtime.server.errors import ApiError, install_handlers
from runtime.server.generation import Asked, Generator
from runtime.server.limits import Admission, BodyLimit
from runtime.server.logs import RequestLog
from runtime.server.metrics import Metrics
from runtime.server.page import Page
from runtime.server.protocol import ChatRequest, CompletionRequest, GenerationRequest
from runtime.server.responses import GenerationResponse
from runtime.server.settings import ServedModel, ServerSettings
from runtime.server.shapes import ChatShape, CompletionShape, Envelope, Shape
from runtime.server.tokens import TokenTexts
from runtime.server.tracing import Tracer

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def make_app(
    llm: AsyncLLM, model: ServedModel, settings: ServerSettings, keys: list[str], tracer: Tracer | None = None
) -> FastAPI:
    """The ASGI application over a running engine; `app.state.admission` can be told to drain."""
    engine = llm.text_engine.engine
    admission = Admission(engine.backend.limits.max_batch_size, settings.max_queue)
    metrics = Metrics(model.name, engine)
    generator = Generator(llm, admission, metrics, settings.request_timeout_s)
    app = FastAPI(title="Enginewright", docs_url=None, redoc_url=None)
    app.state.admission = admission
    install_handlers(app)
    _add_generation(app, generator, model, settings, llm)
    _add_models(app, model)
    _add_operations(app, generator, metrics, model)
    app.mount("/", Page())
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    app.add_middleware(KeyCheck, keys=keys)
    app.add_middleware(RequestLog, tracer=tracer)
    return app


def _add_generation(
    app: FastAPI, generator: Generator, model: ServedModel, settings: ServerSettings, llm: AsyncLLM
) -> None:
    tokenizer = llm.text_engine.tokenizer
    texts = TokenTexts(tokenizer)

    def respond(http: Request, request: GenerationRequest, asked: Asked, shape: Shape) -> Response:
        _check_model(request.model, model)
        envelope = Envelope(shape, model, http.state.record.request_id)
        return GenerationResponse(generator, asked, request, shape, envelope)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(http: Request, request: ChatRequest) -> Response:
        if settings.log_prompts:
            http.state.record.prompt = [message.model_dump(exclude_none=True) for message in request.messages]
        return respond(http, request, asked_by_chat(request, tokenizer), ChatShape(texts))

    @app.post("/v1/completions", response_model=None)
    async def complete(http: Request, request: CompletionRequest) -> Response:
        if settings.log_prompts:
            http.state.record.prompt = request.prompt
        return respond(http, request, asked_by_completion(request, tokenizer), CompletionShape(texts))


def _add_models(app: FastAPI, model: ServedModel) -> None:
    card = {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "enginewright",
        "max_model_len": model.max_model_len,
    }

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> dict[str, Any]:
        _check_model(name, model)
        return card


def _add_operations(app: FastAPI, generator: Generator, metrics: Metrics, model: ServedModel) -> None:
    @app.get("/health", response_model=None)
    async def health() -> Response:
        failed = generator.check()
        if failed is not None:
            return ApiError(503, failed.message, "engine_failed").response()
        return JSONResponse({"status": "ok"})

    @app.get("/ready", response_model=None)
    async def ready() -> Response:
        if generator.admission.is_draining:
            return ApiError(503, "the server is shutting down", "draining").response()
        return await health()

    @app.get("/version")
    async def show_version() -> dict[str, Any]:
        return {"version": _own_version(), "model": model.name, "bundle": model.bundle_id, "target": model.target}

    @app.get("/metrics", response_model=None)
    async def show_metrics() -> Response:
        return Response(metrics.render(), media_type=_METRICS_TYPE)


def _check_model(name: str | None, model: ServedModel) -> None:
    if name is not None and name != model.name:
        message = f"the model {name!r} is not here; this server has {model.name!r}"
        raise ApiError(404, message, "model_not_found", "model")


def _own_version() -> str:
    try:
        return version("enginewright")
    except PackageNotFoundError:  # the folders alone, copied to a host that serves
        return "unknown"
