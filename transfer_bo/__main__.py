"""`python -m transfer_bo`: the same as the command `transfer-bo`."""

from transfer_bo.cli import main

main()
