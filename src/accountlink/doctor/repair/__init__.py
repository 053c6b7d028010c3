"""Plans the migration that repairs what was found, and writes it down: as SQL, or as a revision for Alembic."""
