"""Releases, sources and what was served, over the real API and database."""
