//! Services for this member's plug-in instances, wherever an instance runs.
//!
//! An instance asks over its kernel's socket like any application, by the plug-in API's `host::Asker`: one question, one
//! answer. What comes by itself waits at its desk until the instance's own thread takes it.
//!
//! ```text
//! desk       the kernel's side: who asks, what waits for it, what it has set going
//! processes  what plug-ins have started on this member
//! keeper     the far end: `dvm-kernel process-host`, which ends a process when its kernel is gone
//! ```
//!
//! What each question means is `local::services`, on the local server's thread.

pub(crate) mod desk;
pub(crate) mod keeper;
pub(crate) mod processes;
