"""`python -m stjepa_cli` runs the console script `stjepa`."""

from stjepa_cli.main import main

main()
