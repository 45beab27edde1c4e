"""A run as one HTML file that needs nothing else: no network, no fonts, no library.

The heat map is a table and the charts are SVG, so that they can be read aloud, printed, reached with the keyboard and
searched, and the file of a whole checkpoint stays under a megabyte where plotly alone adds 4.8. `chart` draws for
others too: its SVG stands by itself.
"""
