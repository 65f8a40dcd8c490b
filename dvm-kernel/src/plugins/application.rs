//! An instance in an application's process, from its connection on: the rest is as with any other
//! [`Link`](super::link::Link).
//!
//! The application has connected as a client and asked to attach. What follows on its connection are the
//! [frames](super::channel) of a child that has its library already, so that it is told to start at once.

use super::link::Link;
use crate::services::desk::Desks;
use dvm_core::state::PluginSpec;
use dvm_plugin_api::local::{Answer, Failure, FailureCode, ToClient, write_frame};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// An application's connection.
#[derive(Debug)]
pub(crate) struct Attach {
    /// Number of the request; nothing was answered to it.
    pub(crate) id: u64,
    /// The application's process.
    pub(crate) pid: u32,
    pub(crate) stream: UnixStream,
    /// It knows of services.
    pub(crate) services: bool,
}

impl Attach {
    /// The application runs the instance, which has a desk from here on.
    ///
    /// # Errors
    /// What the system says of its socket.
    pub(super) fn accept(self, spec: &PluginSpec, desks: &Arc<Desks>) -> io::Result<Link> {
        let notices = self.services.then(|| desks.open(&spec.name));
        let answer = match &notices {
            Some(notices) => Answer::AttachedAt { desk: notices.id(), deadline_ms: spec.deadline_ms },
            None => Answer::Attached,
        };
        let mut greeting = Vec::new();
        write_frame(&mut greeting, &ToClient { id: self.id, answer: Ok(answer) })?;
        self.stream.set_nonblocking(true)?;
        let socket = tokio::net::UnixStream::from_std(self.stream)?;
        Ok(Link::application(self.pid, socket, greeting, notices))
    }

    /// It does not, for this reason.
    pub(crate) fn refuse(mut self, why: String) {
        let failure = Failure::new(FailureCode::Failure, why)
            .hint("`dvm plugin show` tells on which members instances wait for an application");
        let mut frame = Vec::new();
        let answer = ToClient { id: self.id, answer: Err(failure) };
        // An answer of this size has room in a socket, and an application that is gone needs none.
        let _ = write_frame(&mut frame, &answer).and_then(|()| self.stream.write_all(&frame));
    }
}

#[cfg(test)]
mod tests {
    use super::super::channel::{FromChild, ToChild};
    use bytes::Bytes;
    use dvm_plugin_api::host::{Said, Told};

    /// The two halves of the channel have types of their own, and an application is built apart from its kernel: what each
    /// says must be what the other understands.
    #[test]
    fn both_halves_of_the_channel_mean_the_same() {
        let bytes = |text: &'static str| (Bytes::from_static(text.as_bytes()), text.as_bytes().to_vec());
        let ((one, mine), (other, yours)) = (bytes("one"), bytes("other"));
        let pairs = [
            (ToChild::Open(one.clone()), Told::Open(mine.clone())),
            (
                ToChild::Validate { config: one.clone(), place: other.clone() },
                Told::Validate { config: mine.clone(), place: yours.clone() },
            ),
            (
                ToChild::Start { config: one.clone(), place: other.clone() },
                Told::Start { config: mine.clone(), place: yours.clone() },
            ),
            (ToChild::Restore(one.clone()), Told::Restore(mine.clone())),
            (ToChild::Role { role: 1, fence: 7 }, Told::Role { role: 1, fence: 7 }),
            (ToChild::Lease { until_us: u64::MAX }, Told::Lease { until_us: u64::MAX }),
            (
                ToChild::Apply { meta: one.clone(), command: other.clone() },
                Told::Apply { meta: mine.clone(), command: yours.clone() },
            ),
            (ToChild::Query(one.clone()), Told::Query(mine.clone())),
            (ToChild::Configure(one.clone()), Told::Configure(mine.clone())),
            (ToChild::Event(one.clone()), Told::Event(mine.clone())),
            (ToChild::Place(one.clone()), Told::Place(mine.clone())),
            (ToChild::Snapshot, Told::Snapshot),
            (ToChild::Stop, Told::Stop),
        ];
        for (said, told) in pairs {
            let body = rmp_serde::to_vec(&said).expect("plain data");
            assert_eq!(rmp_serde::from_slice::<Told>(&body).expect("it is understood"), told);
        }
        let pairs = [
            (Said::Done(mine), FromChild::Done(one)),
            (Said::Own("no".into()), FromChild::Own("no".into())),
            (Said::Panic("oh".into()), FromChild::Panic("oh".into())),
            (
                Said::NotLoaded { code: "abi".into(), reason: "old".into() },
                FromChild::NotLoaded { code: "abi".into(), reason: "old".into() },
            ),
        ];
        for (said, told) in pairs {
            let body = rmp_serde::to_vec(&said).expect("plain data");
            assert_eq!(rmp_serde::from_slice::<FromChild>(&body).expect("it is understood"), told);
        }
    }
}
