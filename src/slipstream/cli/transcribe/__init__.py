"""`slipstream transcribe`: recordings to text, subtitles or JSON."""
