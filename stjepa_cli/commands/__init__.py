"""The command-line program: flags -> one library call -> a rendered result.

What lives here: one module per command, shared options, and `console`, the only user of rich and the error boundary.
What does not: work of any kind; commands parse and print.
May import: every room, inside functions where it is heavy, so that `--help` stays fast.
"""
