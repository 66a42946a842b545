"""How long a run would take on a network that is not here: its choreography as a graph, replayed on clocks."""
