"""Support the tests of applications and of accountlink itself."""
