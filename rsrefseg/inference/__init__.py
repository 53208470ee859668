"""Stages as they are exported: the published arithmetic with everything folded that does not depend on the input."""
