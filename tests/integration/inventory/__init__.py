"""Tests of what is known: tables, rules and store."""
