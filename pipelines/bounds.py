"""How settings refuse a value: one line that names the key, the value and its bound."""

from collections.abc import Sequence

from runtime.errors import EnginewrightError


def require(condition: bool, key: str, value: object, bound: str) -> None:
    """Raise the one-line error of a setting that breaks its bound."""
    if not condition:
        shown = list(value) if isinstance(value, tuple) else value
        raise EnginewrightError(f"{key} is {shown!r}; it must be {bound}")


def require_counts(group: str, settings: object, names: Sequence[str], minimum: int = 1) -> None:
    """Check integers, and tuples of integers, of one group against a minimum."""
    for name in names:
        value = getattr(settings, name)
        values = value if isinstance(value, tuple) else (value,)
        require(len(values) > 0 and min(values) >= minimum, f"{group}.{name}", value, f"at least {minimum}")
