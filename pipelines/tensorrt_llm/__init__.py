"""Folders for TensorRT-LLM: its checkpoints, its commands and configurations, written without it."""
