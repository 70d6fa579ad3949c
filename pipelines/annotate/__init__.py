"""Preferences by people: a store that outlives every process, and the web server that people use it through.

matches, files ──> items ──lease──> person ──label──> decision ──> verdicts for the loop, exports
                  (store)  (assignment)     (labels)  (decision)   (judge, exchange)
"""
