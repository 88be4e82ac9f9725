"""Training of draft heads: data from the target itself or from texts, the loss, the loop, and what a head is worth."""
