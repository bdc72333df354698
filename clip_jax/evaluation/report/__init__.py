"""The page of a suite: HTML and pictures from its results."""
