//! What plug-in authors and applications of a distributed virtual machine build against.

pub mod client;
pub mod local;
pub mod place;
