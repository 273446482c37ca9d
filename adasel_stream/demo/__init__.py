"""The main job: learn which flights will be late, from a year of them, in several ways at once."""
