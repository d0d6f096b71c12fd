//! Images: layers come in as they travel, and stand as directories that overlayfs takes.

mod compression;
mod digest;
mod import;
mod store;
mod tar;
mod unpack;

pub(crate) use import::import;
pub(crate) use store::{ImageStore, LayerPath, make_private_dir};
pub(crate) use unpack::{Limits, OverlayForm, remove_tree};
