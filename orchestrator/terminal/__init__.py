"""What every command shows or is told on a terminal."""
