"""Data sets in their official layouts: each module one data set."""
