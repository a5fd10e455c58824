"""Two releases beside each other, template by template."""

from __future__ import annotations

from provisiond.templating.diffs import TemplateDiff, compare_files


def test_added_removed_and_changed() -> None:
    """In the order of paths, equal ones left out; a last line without its end is told, as git does."""
    before = {"a.j2": "one\ntwo\n", "b.j2": "same\n", "c.j2": "gone\n"}
    after = {"a.j2": "one\n2", "b.j2": "same\n", "d.j2": "new\n"}
    assert compare_files(before, after, ("#1", "#2")) == [
        TemplateDiff(
            "a.j2", "changed", "--- #1/a.j2\n+++ #2/a.j2\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n\\ No newline at end of file\n"
        ),
        TemplateDiff("c.j2", "removed", "--- #1/c.j2\n+++ /dev/null\n@@ -1 +0,0 @@\n-gone\n"),
        TemplateDiff("d.j2", "added", "--- /dev/null\n+++ #2/d.j2\n@@ -0,0 +1 @@\n+new\n"),
    ]  # fmt: skip
    assert compare_files(before, before) == []
