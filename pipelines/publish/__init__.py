"""One bundle to many places: the content first, what makes it whole last."""
