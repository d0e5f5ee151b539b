"""For people who work on gmoe; never imported by it."""
