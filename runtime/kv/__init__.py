"""The paged KV cache: its tensors, and who owns which block."""
