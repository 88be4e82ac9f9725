"""Steps as captured graphs: the same operations at the same addresses, replayed with other numbers."""
