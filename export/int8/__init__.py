"""Int8 export: which products of the image encoder are computed in integers, and how."""
