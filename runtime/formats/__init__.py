"""The formats on disk: the unified checkpoint and the engine bundle."""
