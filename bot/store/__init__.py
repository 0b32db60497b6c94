"""The home of SQLAlchemy: schema, engines, and one method a transaction."""
