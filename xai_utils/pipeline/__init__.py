"""The pipeline: a notebook as a stage, its parameters, its report, and the site of all reports."""
