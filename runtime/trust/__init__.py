"""Whether a bundle is what the owner of a key signed."""
