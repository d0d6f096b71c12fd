//! The qemu provider of infranetes.
