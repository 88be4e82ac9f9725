"""Steps over graphs that take dense batches and whole caches: one slot of the cache per request."""
