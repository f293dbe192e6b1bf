"""The whole chain on generated clips: what a stranger runs first.

What lives here: synthetic videos, their official layouts, a shipped tiny teacher, and the run.
What does not: how any part works; the demo calls the same functions as the commands.
May import: every room below `commands`.
"""
