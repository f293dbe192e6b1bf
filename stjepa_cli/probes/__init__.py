"""How frozen features are scored: each module one probe."""
