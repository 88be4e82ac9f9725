"""A decoder's whole step, embedding to logits, in one launch: for the few rows of decode and of draft trees."""
