"""What a page shows and asks: figures, knobs, exercises."""
