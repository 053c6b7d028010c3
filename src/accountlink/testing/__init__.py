"""For tests, of applications and of accountlink itself."""
