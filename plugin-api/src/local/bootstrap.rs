//! What a launcher tells a kernel on its standard input, and what the kernel answers on its standard output.
//!
//! The kernel reads one line of JSON, a [`Bootstrap`]; when it is a member, or cannot become one, it writes one line,
//! [`BOOTSTRAP_MAGIC`] and a JSON [`Bootstrapped`], and lets go of the launcher's descriptors. Secrets travel here and
//! never in arguments, environment or logs.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Begins the kernel's line, so that a noisy shell's output is not taken for it.
pub const BOOTSTRAP_MAGIC: &str = "DVM-KERNEL-1 ";

/// From the launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The DVM's name.
    pub dvm: String,
    /// The member's name.
    pub member: String,
    /// How it becomes a member.
    pub role: BootstrapRole,
    /// `key=value` pairs for selectors.
    pub tags: BTreeMap<String, String>,
    /// The runtime directory; `None`: the kernel works it out on its host.
    pub runtime_dir: Option<PathBuf>,
    /// The log directory; `None`: the kernel works it out on its host.
    pub log_dir: Option<PathBuf>,
    /// Address to listen at, without a port.
    pub listen: String,
    /// At most so many restarts of a dead kernel in so many milliseconds.
    pub respawn: Option<(u32, u64)>,
}

/// How a kernel becomes a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootstrapRole {
    /// It is the first.
    Found {
        /// `KEY`, `VALUE`.
        settings: Vec<(String, String)>,
    },
    /// It joins with a single-use ticket.
    Join {
        /// As [`Answer::Ticket`](super::Answer::Ticket) gave it.
        ticket: String,
    },
}

/// From the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bootstrapped {
    /// It is a member.
    Ready {
        /// Its name.
        member: String,
        /// Its incarnation.
        id: String,
        /// Its process.
        pid: u32,
        /// Where local clients reach it.
        socket: PathBuf,
    },
    /// It could not become one, and has exited.
    Failed {
        /// `start`, `connect`, `version`, `authenticate` or `join`.
        stage: String,
        /// What happened.
        reason: String,
        /// What to do.
        hint: String,
    },
}
