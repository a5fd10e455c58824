"""Trying a release out: shadow runs, which serve nothing, and rollouts, which bring it to hosts in portions."""
