"""The fault of a kernel, a compiler or a driver. Imports run runtime -> plugins, so it is not the runtime's own."""


class KernelError(ValueError):
    """A kernel that cannot be compiled, loaded or launched; the message is one line with the remedy."""
