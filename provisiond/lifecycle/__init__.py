"""The path of a host: the table of states, one module per state, and the reconciler that moves hosts along it."""
