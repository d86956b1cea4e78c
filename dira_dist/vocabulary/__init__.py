"""Visual words: a vocabulary of anatomical patterns found in an archive, as a set of cubes that carry their word."""
