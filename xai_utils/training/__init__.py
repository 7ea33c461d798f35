"""Trainings: the loop and its checkpoints, devices and processes, and what each paper trains."""
