"""`python -m stjepa_cli` is the console script `stjepa`."""

from stjepa_cli.main import main

main()
