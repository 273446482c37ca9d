"""The proof: tasks x contestants x rates x seeds, resumable, with a table of what came out.

`python -m benchmarks.evidence --data FOLDER` runs what is missing and renders docs/results.md.
"""
