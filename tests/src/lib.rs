//! Tests that need more than one crate: the simulator of a whole DVM, and tests of real processes.

pub mod book;
pub mod cluster;
pub mod sim;
pub mod soak;
