"""What changes a request's logits by its own text before a token is drawn: biases, penalties, grammars."""
