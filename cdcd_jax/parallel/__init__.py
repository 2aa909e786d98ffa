"""Where arrays live: the mesh, the sharding rules, and what a host needs to know of itself. Imports no other room but config."""
