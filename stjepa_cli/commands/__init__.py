"""The command-line program: flags -> one library call -> a rendered result.

What lives here: one module per command, shared options, and `console`, which prints and catches errors.
What does not: work of any kind; commands parse and print.
May import: every room, inside functions where it is heavy, so that `--help` stays fast.
"""
