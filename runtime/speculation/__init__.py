"""Speculation: drafters propose trees of tokens, the target's pass over a tree says which of them it emits itself."""
