//! The infranetes daemon: a Kubernetes CRI v1 runtime whose pods are machines.

pub mod api;
pub mod config;
pub mod convert;
pub mod service;
