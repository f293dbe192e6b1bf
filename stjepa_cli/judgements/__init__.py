"""Judgements of what is similar, and small heads on frozen vectors that learn from them.

What lives here: the log of judgements, what is derived from it, heads, their training, application and report, a simulated judge.
What does not: tables and search (`search/`), encoders (`encoders/`).
May import: `search`, `models`, `viz`, `core`.
"""
