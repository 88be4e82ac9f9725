"""`python -m runtime`: see runtime/cli.py."""

from runtime.cli import main

main()
