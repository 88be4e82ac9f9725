"""Out of a bundle again: its weights, config and tokenizer in the formats of others."""
