"""The main job: learn which flights will be late, from a year of them, in three ways at once."""
