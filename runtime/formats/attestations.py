"""What a bundle says about a check that its build left out."""

import json
from pathlib import Path

NOT_RUN = "not_run"  # the one key of a report that stands for none; its value says why


def not_run(report: Path) -> str:
    """Why the check of this report was left out; "" where it was run, or where there is no report to say so."""
    try:
        fields = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(fields.get(NOT_RUN, "")) if isinstance(fields, dict) else ""
