"""Remove and retrain (ROAR), keep and retrain (KAR): what networks learn of what a map leaves them (FastCAM §4)."""
