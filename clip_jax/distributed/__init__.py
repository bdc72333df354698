"""Several devices and several processes: the mesh, who takes part, and what happens when one of them fails."""
