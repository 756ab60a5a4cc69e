"""`python -m transfer_bo.cli`."""

from transfer_bo.cli import main

main()
