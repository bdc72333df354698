"""Any source to ArrayRecord shards at a chosen resolution, with a manifest that accounts for every record.

Read in this order: `transform`, what becomes of one record; `shards`, which records a shard holds and how
it is written; `workers` and `beam`, who makes the shards, processes here or a pipeline elsewhere; `statistics` and
`duplicates`; `manifest`, what is said of them all. `folder` writes files that appear whole or not at all.
"""
