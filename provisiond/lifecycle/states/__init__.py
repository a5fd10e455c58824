"""One module per state; each lists its steps in the order they are taken."""
