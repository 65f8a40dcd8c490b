//! Real members on a toy network: every way takes one hop, nothing happens by chance, time is simulated.
//!
//! | file | owns |
//! |---|---|
//! | `world` | time, kernels, and how inputs reach a member and outputs leave it |
//! | `net` | ring links, cuts, deaths |
//! | `script` | the commands of a scenario |
//! | `show` | how frames, entries and members are written |
//!
//! The simulator of the workspace's `tests` draws everything from a seed; here everything is said.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses a part")]

mod net;
mod script;
mod show;
mod world;

pub use script::play;
pub use world::{Execution, HOP_US, World};
