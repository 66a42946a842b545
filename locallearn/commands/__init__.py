"""What the commands say: one module for each of them, or for what several of them show on a terminal."""
