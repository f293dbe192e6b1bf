"""Frozen models that make latents: each module one teacher."""
