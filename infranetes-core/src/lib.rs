//! Runs pods as machines: the embeddable engine of infranetes.
pub mod image;
