"""Minutes of hostile use of our own server: many streams, clients that leave or die, bad requests."""
