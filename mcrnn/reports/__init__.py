"""Write everything that a person reads: tables, figures, animations, the HTML page and `forecasts.zarr`.

`evaluation_report` puts the report of an evaluation together; `search_tables` and `search_figures` show a search.
Reports show what `mcrnn.evaluation` and `mcrnn.search` have computed, and do not import `mcrnn.search`.
"""
