"""A tiny VideoMAE for the demo, as a Hugging Face folder, and the script that trained it."""
