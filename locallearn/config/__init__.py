"""Configurations: from YAML, with every mistake at its line, to the runs that there will be. Nothing here runs anything."""
