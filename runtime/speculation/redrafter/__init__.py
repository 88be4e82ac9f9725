"""ReDrafter: a recurrent head on the target's last hidden state that drafts trees by beam search."""

from runtime.speculation.redrafter.drafter import ReDrafter
from runtime.speculation.redrafter.loading import load_redrafter

__all__ = ["ReDrafter", "load_redrafter"]
