"""The recorded numbers: what was measured over seeds, how sure we are, and what of it is out of date."""
