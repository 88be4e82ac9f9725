"""Where models come from. Each module brings one kind of source into a folder and says what it is called."""
