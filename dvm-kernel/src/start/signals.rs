//! Signals: TERM and INT leave in order, HUP opens the log anew, USR1 logs the state.

use crate::local::documents;
use crate::log;
use crate::ring::RingHandle;
use dvm_core::Input;
use dvm_core::state::LeaveBy;
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

const SIGXFSZ: i32 = rustix::process::Signal::XFSZ.as_raw();

/// How long leaving in order may take; whoever sent the signal may kill after half a minute.
const LEAVE: Duration = Duration::from_secs(15);

/// Serves signals for ever. `give_up` ends the process when leaving takes too long.
pub(super) fn serve(ring: RingHandle, give_up: impl FnOnce()) -> io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let hup = signal(SignalKind::hangup())?;
    let usr1 = signal(SignalKind::user_defined1())?;
    // Under `ulimit -f` a write that is too much fails, and does not end the kernel.
    let _ = signal(SignalKind::from_raw(SIGXFSZ))?;
    // A terminal's and a pipe's end are nothing to a kernel.
    let (asked, noted) = (ring.clone(), serve_notes(ring, hup, usr1));
    Ok(async move {
        let leave = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            tracing::info!("leaving by a signal");
            // The ring's task has ended: the kernel is on its way out.
            let _ = asked.input(Input::Leave { by: LeaveBy::Term }).await;
            sleep(LEAVE).await;
            tracing::error!("leaving in order took too long");
            give_up();
        };
        tokio::join!(leave, noted);
    })
}

async fn serve_notes(ring: RingHandle, mut hup: Signal, mut usr1: Signal) {
    loop {
        tokio::select! {
            _ = hup.recv() => {
                log::reopen();
                tracing::info!("the log was opened anew");
            }
            _ = usr1.recv() => {
                let noted = ring.look(|member, now| {
                    let phase = documents::phase(member.phase());
                    let (waiting_for, members) = (member.waiting_for(), member.members_status(now));
                    let open = member.state().map_or(0, |state| state.open.len());
                    tracing::info!(phase, view = ?member.view(), ?waiting_for, ?members, open, "state");
                });
                if noted.await.is_err() {
                    return;
                }
            }
        }
    }
}
