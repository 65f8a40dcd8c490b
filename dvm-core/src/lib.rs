//! The control protocol of a distributed virtual machine (DVM) as one value.
//!
//! A [`Member`] is one kernel's part in the ring: it holds no socket, no clock, no source of entropy and no thread.
//! The daemon and the simulator drive the same code, by one contract:
//!
//! 1. call [`Member::handle`] with the time and an [`Input`];
//! 2. call [`Member::poll_output`] until it returns `None` and carry the outputs out in order;
//! 3. wait for the next input, or for [`Member::next_deadline`] and then hand in [`Input::Wake`].
//!
//! The crate is `no_std` so that the compiler proves the absence of IO; it iterates ordered maps only, so equal
//! inputs give equal outputs. `docs/protocol.md` describes the protocol and its invariants.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod admission;
mod agreement;
mod ballot;
mod config;
mod cx;
mod detect;
mod flush;
mod heal;
pub mod ids;
mod io;
mod join;
mod lease;
mod links;
mod member;
mod prng;
mod record;
mod ring;
mod seat;
pub mod state;
mod timer;
pub mod view;
pub mod wire;

pub use config::{Config, ConfigError, Merge, Partition};
pub use io::{Answer, Delivery, Input, Output, Receipt, Refusal, Reject, Side, Snapshot, Standing};
pub use member::{Member, MemberStatus, Phase};
pub use prng::Prng;
