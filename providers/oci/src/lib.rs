//! The oci provider of infranetes.
