"""`python -m serving.cli` is `lethe`."""

from serving.cli.main import main

main()
