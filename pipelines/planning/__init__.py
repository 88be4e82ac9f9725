"""What a build would do, told without doing any of it: nothing is written, locked, downloaded or recorded."""
