"""One run: it is prepared, its student learns and is cut, and leaves itself at every target."""
