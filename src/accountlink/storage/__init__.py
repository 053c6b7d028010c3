"""Asks the database. The only importer of SQLAlchemy and of drivers' exceptions; turns answers into facts."""
