"""What a cluster is made of (`plan`), and who makes it: Azure, or this machine (`lab`)."""

PROJECT = "azure-active-passive-cluster"
"""What everything of ours is known by: folders, control groups, tags, pages."""


class Refusal(Exception):  # noqa: N818 - a refusal is an answer to the operator, not a bug
    """One sentence for the operator: which file or value is wrong, and what would be right.

    `python -m deploy` prints it on standard error and exits with 2.
    """
