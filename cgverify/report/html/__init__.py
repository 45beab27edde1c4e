"""A run as one HTML file without network, fonts or libraries.

The heat map is a table and the charts are SVG, so that they can be read aloud, printed, searched, and reached with the
keyboard. The file of a whole checkpoint is smaller than a megabyte; plotly alone would add 4.8.
"""
