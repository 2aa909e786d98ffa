"""Reporting: pictures from arrays, and the one page of a run made from its workdir's files. Nothing is computed by a model here."""
