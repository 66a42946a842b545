"""How long a run would take on a given network: its choreography as a graph, replayed on clocks."""
