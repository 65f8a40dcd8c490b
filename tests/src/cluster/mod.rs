//! Real kernels on this machine for a test: each [`Ground`] has directories of its own, and nothing outlives it.
//!
//! Everything is done through the programs that users have, found beside the test's own executable. Nothing here sleeps
//! for a condition: [`wait_for`] looks until it holds or [`PATIENCE`] is up. A test that fails prints its kernels' logs;
//! one that ends while a process of its ground lives fails.

mod follower;
mod ground;
mod hosts;
mod outcome;
mod outside;
mod processes;
mod runner;
mod services;
mod writer;

pub use follower::Follower;
pub use ground::{Cluster, Ground};
pub use hosts::{Host, Hosts, settle};
pub use outcome::Outcome;
pub use outside::{has, installed};
pub use processes::{Process, lives, signal};
pub use runner::Runner;
pub use services::services_are_answered;
pub use writer::{Writer, key_changes};

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take. The machine may be slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `holds` gives something, which is returned.
///
/// # Panics
/// When [`PATIENCE`] is up.
pub fn wait_for<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = holds() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        sleep(LOOK);
    }
}

/// A program beside this executable or this test's, or a library of the same build.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let executable = std::env::current_exe().expect("what runs has an executable");
    let mut directory = executable.parent().expect("it is in target/PROFILE, or for a test in its deps");
    if directory.ends_with("deps") {
        directory = directory.parent().expect("deps is in target/PROFILE");
    }
    let path = directory.join(name);
    let hint = "cargo build --workspace --bins && cargo build -p dvm-plugin-counter -p dvm-capi";
    assert!(path.is_file(), "{} is missing; run: {hint}", path.display());
    path
}

/// Whether this is root, which `what` needs. Where it is not, the test is skipped and says so; under `CI=true`, where
/// nobody reads that, it fails.
///
/// # Panics
/// Under `CI=true` without root.
#[must_use]
pub fn root_for(what: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "CI=true runs this as root: {what}");
    eprintln!("skipped: {what} needs root");
    false
}
