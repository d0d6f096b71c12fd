//! Vets, loads and runs infranetes plugins.
