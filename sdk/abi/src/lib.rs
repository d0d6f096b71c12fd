//! The frozen binary surface between infranetes and its plugins.
