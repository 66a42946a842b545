"""Where a run happens: fabrics, sessions, and the course of a run. Nothing here knows any rule."""
