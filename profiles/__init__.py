"""How fast a device decodes, and how near that is to what its memory allows: devices, peaks, cells, reports."""
