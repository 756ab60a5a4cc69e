"""Where trials run: this process, local worker processes."""
