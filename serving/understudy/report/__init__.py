"""The report for people: what status says, with the figures and the worst disagreements beside it.

    summary.py   ChallengerSummary: the figures of one challenger, filled by the caller
    view.py      status and summaries laid side by side, ready to show
    table.py     the terminal
    page.py      one HTML page in one file, from page.html; plot.py draws its intervals

Importing this package imports neither rich nor jinja2.
"""
