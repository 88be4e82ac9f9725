"""Signs bundles: who made them from what, and what their checks found."""
