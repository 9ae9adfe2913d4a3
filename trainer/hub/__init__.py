"""The Hub, as training and preparing both read it.

What a repository holds is fetched file by file and checked (`pulling`), a dataset's Parquet made Arrow again (`restoring`);
names in place of folders lead to a copy on this machine (`folders`). `client` says in a sentence what the Hub refuses.
"""
