"""Profiles any OpenAI-compatible endpoint: arrivals, streamed answers, latencies, goodput. Knows no engine of ours."""
