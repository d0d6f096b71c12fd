//! The agent as the first process of a guest: file systems, modules, network, user-data; and at the end, power.

pub mod network;
