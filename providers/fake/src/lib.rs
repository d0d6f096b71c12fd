//! The fake provider of infranetes.
