"""What tests of applications and of accountlink itself stand on."""
