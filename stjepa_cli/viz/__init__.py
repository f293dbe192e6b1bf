"""Charts as SVG, self-contained HTML pages, and image files.

What lives here: drawing of numbers and pixels that somebody else computed.
What does not: the content of a page (`training/report`, `evaluation/report_page`).
May import: `core`.
"""
