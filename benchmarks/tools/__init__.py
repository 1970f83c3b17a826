"""Tools that are no benchmark: a storm of kills, the table of strategies, the picture in README."""
