"""From a machine that nobody knows to a host: facts taken in, rules applied, changes and differences told."""
