//! Exit codes. Those of failures stand with [`FailureCode`](dvm_plugin_api::local::FailureCode): 1 failure, 2 usage,
//! 3 no DVM, 4 rejected, 5 unknown, 6 not found, 7 denied, 8 no quorum.

use dvm_plugin_api::local::{Failure, FailureCode};

/// What a command ends with: an exit code where it has told everything itself, or what `main` has to tell.
pub(crate) type Result = std::result::Result<u8, Failure>;

/// All went well.
pub(crate) const OK: u8 = 0;

/// Something did not, and the document printed says what.
pub(crate) const FAILURE: u8 = 1;

/// The DVM was lost.
pub(crate) const NO_DVM: u8 = 3;

/// Voted down.
pub(crate) const REJECTED: u8 = 4;

/// Nobody knows yet.
pub(crate) const UNKNOWN: u8 = 5;

/// For what the protocol knows and this version does not do.
pub(crate) fn not_available(what: &str) -> Failure {
    Failure::new(FailureCode::Failure, format!("{what} is not available in this version"))
}

/// For arguments that make no sense.
pub(crate) fn usage(message: impl Into<String>) -> Failure {
    Failure::new(FailureCode::Usage, message)
}

/// For anything without a code of its own.
pub(crate) fn failed(message: impl Into<String>) -> Failure {
    Failure::new(FailureCode::Failure, message)
}
