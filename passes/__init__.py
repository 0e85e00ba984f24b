"""Graph to graph transformations that know no target."""
