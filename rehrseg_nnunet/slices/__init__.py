"""Pure geometry and physics along the slice axis."""
