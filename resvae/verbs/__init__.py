"""What the command line does with a trained model: one verb per file, a function whose signature is its options."""
