"""Generated videos, and what is run on them: the demo and the benchmarks.

What lives here: motions and looks, video files in the official layouts, a shipped tiny teacher, the demo, the benchmarks.
What does not: how any step works; each is the use case of a command.
May import: every room below `commands`.
"""
