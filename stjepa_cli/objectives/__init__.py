"""What there is to learn: each module one objective."""
