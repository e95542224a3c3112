"""A strict Azure on loopback: it answers as Azure does, and refuses what Azure refuses."""
