"""Remove and retrain (ROAR), keep and retrain (KAR): what networks learn of what a map leaves (FastCAM §2.4, 3.1)."""
