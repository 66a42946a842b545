"""What a person sees: lines, tables and figures of runs, on the terminal and on disk."""
