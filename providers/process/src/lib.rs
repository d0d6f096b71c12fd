//! The process provider of infranetes.
