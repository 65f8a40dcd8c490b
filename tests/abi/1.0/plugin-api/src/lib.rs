//! What plug-in authors build against, as it was in version 1.0. Frozen: see the README beside it.

pub mod abi;
pub mod export;
#[cfg(feature = "host")]
pub mod host;
pub mod manifest;
mod plugin;

pub use plugin::{Error, Event, Host, Meta, Place, Plugin, Result, Role};
