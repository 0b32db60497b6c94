"""The model: no platform, no database, no bot."""
