"""The OpenAI-compatible HTTP server over one engine bundle. Only this package imports FastAPI and uvicorn."""
