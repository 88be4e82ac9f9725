"""Text on both sides of the engine: tokens from it, tokens to it, and the chat template."""
