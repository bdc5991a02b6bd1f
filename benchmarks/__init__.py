"""What backs the figures in the README, one command each."""
