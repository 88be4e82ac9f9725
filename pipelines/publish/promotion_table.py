"""A verdict as a table for a person."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipelines.publish.promotion import Verdict


def gate_table(verdict: Verdict) -> Table:
    """One row a gate."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("gate", overflow="fold")
    table.add_column(f"champion, version {verdict.champion or 'none'}", overflow="fold")
    table.add_column(f"candidate, version {verdict.version}", overflow="fold")
    table.add_column("bound", overflow="fold")
    table.add_column("verdict")
    for gate in verdict.gates:
        shown = "[green]passed[/]" if gate.passed else "[bold red]FAILED[/]"
        table.add_row(gate.name, gate.champion, gate.candidate, gate.bound, shown)
    return table
