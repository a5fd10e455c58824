"""TEMPLATES: the catalogue of a release, the sandbox that renders it, and the names a template may see.

``catalogue`` reads a directory into an immutable set of files, ``render`` turns one of them into text, ``context`` says what
a template sees of a host, ``quoting`` holds the filters that keep a value in its place, ``validators`` ask each format's own
checker.
"""
