"""Configuration: what may be set (schema), how it is read (load) and how it is shown (render)."""
