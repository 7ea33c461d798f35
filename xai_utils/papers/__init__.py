"""Each paper's tables, figures and claims, held against a run of our own."""
