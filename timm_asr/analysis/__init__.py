"""What trained models show; each module needs its own optional extra."""
