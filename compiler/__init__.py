"""What every floor above stands on: the graph, its checks, rewriting, declarations, verification."""
