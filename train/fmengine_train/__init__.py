"""Training: labelled pictures → AlexNet → checkpoint."""
