"""Where the layers live: one device, a mesh of devices, MPI ranks."""
