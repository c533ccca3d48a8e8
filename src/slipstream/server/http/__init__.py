"""HTTP routes: application, uploads, health, metrics and API descriptions."""
