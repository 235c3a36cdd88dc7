"""Int8 export: which products of a stage are computed in integers, and how."""
