"""`mta-prep report`: one page about datasets, caches and runs.

What is shown comes from what others already compute or keep (manifests, `inspect`, metrics, evaluations); here it is put
together, and drawn by the templates in `pages`. A page holds no script, loads nothing, and escapes all that it shows.
"""
