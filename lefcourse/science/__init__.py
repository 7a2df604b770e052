"""What can change a measured number, and nothing else: data, networks, training, judging, seeds."""
