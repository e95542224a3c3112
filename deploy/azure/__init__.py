"""Applies the plan to Azure: `up` creates or completes a cluster, `plan` compares, `down` removes.

`resources` says what a cluster is made of, as data; `cloud` talks to Azure; `apply` creates what
is missing, at the same time what does not depend on each other.
"""
