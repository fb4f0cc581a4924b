"""How the model reaches the devices; both ends of a way in one file."""
