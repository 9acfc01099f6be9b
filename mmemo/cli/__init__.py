"""The `mmemo` program: one small file per verb, imported when that verb is called."""
